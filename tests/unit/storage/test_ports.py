import socket

from recurra.storage.ports import Ports, claimed


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


def test_what_somebody_has_claimed_is_not_given_to_another():
    """Two servers that start at the same moment would both find the same ports free."""
    with claimed("test", wait=False) as first, claimed("test", wait=False) as second:
        assert (first, second) == (True, False)
    with claimed("test", wait=True) as later:
        assert later
