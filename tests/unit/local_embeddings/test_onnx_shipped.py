import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from shared.infrastructure.local_embeddings import UnsupportedModelError
from shared.infrastructure.local_embeddings.onnx_encoder.shipped import read_shipped


def external(location):
    tensor = numpy_helper.from_array(np.zeros(64, np.float32), "weight")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def graph(nodes=(), tensors=()):
    return helper.make_graph(list(nodes), "graph", [], [], list(tensors))


def save(path, nodes=(), tensors=(), *, domains=("",), functions=()):
    opsets = [helper.make_opsetid(domain, 17) for domain in domains]
    model = helper.make_model(
        graph(nodes, tensors), opset_imports=opsets, functions=list(functions)
    )
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def path(tmp_path):
    (tmp_path / "outside.bin").write_bytes(bytes(256))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "beside.bin").write_bytes(bytes(256))
    (tmp_path / "model" / "link.bin").symlink_to(tmp_path / "outside.bin")
    return tmp_path / "model" / "model.onnx"


def test_weights_may_lie_beside_the_graph(path):
    shipped = read_shipped(save(path, tensors=[external("beside.bin")]))
    assert shipped.graph.files == {"beside.bin"}
    before = shipped.digest
    (path.parent / "beside.bin").write_bytes(bytes(255) + b"1")
    assert read_shipped(path).digest != before


OUTSIDE = ["../outside.bin", "/etc/passwd", "link.bin", "sub/../../outside.bin", r"..\outside.bin"]


@pytest.mark.parametrize("location", OUTSIDE)
def test_weights_outside_of_the_directory_are_refused(path, location):
    save(path, tensors=[external(location)])
    with pytest.raises(UnsupportedModelError, match="outside of its directory"):
        read_shipped(path)


def test_weights_that_are_not_there_are_named(path):
    save(path, tensors=[external("missing.bin")])
    with pytest.raises(UnsupportedModelError, match=r"missing\.bin"):
        read_shipped(path)


def hidden(inner):
    """A node that has a graph in one of its branches."""
    branch = graph([inner] if isinstance(inner, onnx.NodeProto) else (), [])
    if isinstance(inner, TensorProto):
        branch.initializer.append(inner)
    return helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=graph())


def test_a_file_is_refused_wherever_the_graph_names_it(path):
    constant = helper.make_node("Constant", [], ["c"], value=external("../outside.bin"))
    for node in (constant, hidden(external("../outside.bin")), hidden(constant)):
        save(path, [node])
        with pytest.raises(UnsupportedModelError, match="outside of its directory"):
            read_shipped(path)


def test_operators_of_other_libraries_are_refused(path):
    own = helper.make_node("Evil", ["x"], ["y"], domain="evil.org")
    function = helper.make_function(
        "evil.org", "Evil", ["x"], ["y"], [], [helper.make_opsetid("", 17)]
    )
    for content in (
        {"nodes": [own]},
        {"nodes": [hidden(own)]},
        {"domains": ("", "evil.org")},
        {"functions": [function]},
    ):
        save(path, **content)
        with pytest.raises(UnsupportedModelError, match="never run"):
            read_shipped(path)


def test_operators_of_onnx_and_its_runtime_are_run(path):
    nodes = [helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")]
    shipped = read_shipped(save(path, nodes, domains=("", "ai.onnx", "com.microsoft")))
    assert (shipped.dtype, shipped.batch_invariant) == ("float32", True)
    assert shipped.graph.source == str(path)


@pytest.mark.parametrize(
    ("nodes", "tensors", "expected"),
    [
        ([helper.make_node("DynamicQuantizeLinear", ["x"], ["a", "b", "c"])], [], ("int8", False)),
        ([], [numpy_helper.from_array(np.zeros(2, np.float16), "h")], ("float16", True)),
    ],
)
def test_a_graph_is_what_its_numbers_are(path, nodes, tensors, expected):
    shipped = read_shipped(save(path, nodes, tensors))
    assert (shipped.dtype, shipped.batch_invariant) == expected


def test_what_is_no_graph_is_refused(path):
    path.write_bytes(b"\xff garbage")
    with pytest.raises(UnsupportedModelError, match="no ONNX file"):
        read_shipped(path)
