"""The SDK's own HTTP/1.1 and HTTP/2: a pool of connections on asyncio, httptools and hpack.

::

    transport.py            the pool as a transport of either HTTP library
    pool.py                 which connection carries which request; waiting, keeping, closing
    sharing.py              which origins speak HTTP/2, and the one connection to each of them
    origin.py               scheme, host, port
    connect.py              addresses, sockets, TLS
    alpn.py                 which version of HTTP was agreed on
    link.py                 a connection of either version: its socket, and why that broke
    connection.py           HTTP/1.1, one exchange at a time: flow control, time limits
    http2_connection.py     HTTP/2, many exchanges at a time: places, time limits
    http2_session.py        what is said on it: frames in, frames out; no I/O
    http2_stream.py         one exchange on it, and how much of it may be on its way
    frames.py               frames out of bytes and into bytes
    exchange.py             a request under way, as connection and reader see it
    answer.py               bytes in, an answer in HTTP/1.1 out; no I/O
    request.py              a request in, bytes out; no I/O
    http2_head.py           the same for HTTP/2: a request's head and an answer

Proxies are not its business; the native transport of the HTTP library has them.
"""
