import socket

import pytest

from kiss3d_infer.errors import InputError
from kiss3d_infer.serve.run import check_port_is_free


def test_a_port_in_use_is_found_before_anything_starts() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen(1)
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=rf"port {port} is in use.*http.port={port + 1}"):
            check_port_is_free("127.0.0.1", port)
    check_port_is_free("127.0.0.1", port)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(InputError, match=r"cannot listen on 192\.0\.2\.77:8000"):
        check_port_is_free("192.0.2.77", 8000)
