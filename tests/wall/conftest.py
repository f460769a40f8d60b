import pytest

# What these assert is said in full, as in a test.
pytest.register_assert_rewrite("tests.wall.leaks", "tests.wall.row")
