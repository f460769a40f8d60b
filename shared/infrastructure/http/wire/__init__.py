"""The SDK's own HTTP/1.1 wire: a pool of connections on asyncio and httptools.

::

    transport.py    the httpx flavour: the only file that knows httpx
    pool.py         which connection carries which request; waiting, keeping, closing
    origin.py       scheme, host, port
    connect.py      addresses, sockets, TLS
    connection.py   one connection, one exchange at a time: flow control, time limits
    exchange.py     a request under way, as connection and reader see it
    answer.py       bytes in, an answer out; no I/O
    request.py      a request in, bytes out; no I/O

HTTP/2 and proxies are not its business; the native transport of the HTTP library has them.
"""
