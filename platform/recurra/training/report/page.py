from recurra.storage.store import Store

REPORT = "report.html"


def write_report(store: Store) -> None: ...
