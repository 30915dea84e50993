import socket

from recurra.storage.ports import Ports


def test_free_ports_are_different_and_out_of_the_way():
    """The kernel takes outgoing ports from 32768 on, Ray's workers take theirs below 20000."""
    ports = Ports.free()

    assert len(set(ports.listening())) == 11
    assert all(20000 <= port < 32768 for port in ports.listening())
    assert ports.all_free()


def test_a_port_where_somebody_listens_is_not_free():
    """Also the one that the admin server adds by itself."""
    ports = Ports.free()
    for port in (ports.s3, ports.admin + 10000):
        with socket.create_server(("127.0.0.1", port)):
            assert not ports.all_free()
