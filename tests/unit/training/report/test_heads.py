import re

import numpy as np

from recurra.training.report.heads import heads_html


def found(weights, **more):
    steps = len(weights)
    return {
        "heads": [
            {"kind": "write", "number": 1, "weights": weights},
            {"kind": "read", "number": 1, "weights": weights},
        ],
        "adds": [[0.5, -0.5]] * steps,
        "reads": [[0.0, 0.25]] * steps,
        **more,
    }


def one_hot(rows, places):
    return np.eye(rows)[places].tolist()


def labels(html, name):
    """Memory rows that a picture is labelled with."""
    picture = html[html.index(f'aria-label="{name}, by') :]
    return [
        int(label) for label in re.findall(r'class="tick end" x="38"[^>]*>(\d+)<', picture[: picture.index("</svg>")])
    ]


def test_a_cell_is_drawn_for_each_step_that_a_head_attends_to():
    """A sharp weighting is one dark cell a step."""
    html = heads_html(found(one_hot(8, [1, 2, 3])))
    picture = html[html.index('aria-label="read head, by') :]

    assert picture[: picture.index("</svg>")].count('class="cell"') == 3


def test_rows_that_nobody_attends_to_are_cut_away():
    """Of 128 rows a copy of 20 vectors uses 20; the others would make the picture unreadable."""
    html = heads_html(found(one_hot(128, [40, 41, 42, 43])))

    assert labels(html, "write head") == [39, 40, 41, 42, 43, 44]


def test_rows_that_wrap_around_the_memory_stay_together():
    """The memory is a ring: a head that walks over its end has not jumped."""
    html = heads_html(found(one_hot(100, [98, 99, 0, 1])))

    assert labels(html, "write head") == [97, 98, 99, 0, 1, 2]


def test_a_head_that_attends_to_everything_shows_all_rows():
    """Nothing is hidden when there is nothing to leave out, nor when no row stands out."""
    few = heads_html(found(np.full((3, 4), 0.25).tolist()))
    many = heads_html(found(np.full((3, 128), 1 / 128).tolist()))

    assert labels(few, "read head") == [0, 1, 2, 3]
    assert labels(many, "read head")[0] == 0 and labels(many, "read head")[-1] > 100


def test_positive_and_negative_numbers_have_two_colours():
    """What is added to the memory has a sign."""
    html = heads_html(found(one_hot(4, [0, 1]), inputs=[[1.0], [0.0]], outputs=[[0.0], [0.9]]))
    adds = html[html.index('aria-label="vectors added') :]

    assert adds[: adds.index("</svg>")].count("cell less") == 2
    assert "outputs, where they are judged" in html and "inputs" in html


def test_a_head_without_a_counterpart_has_its_column():
    """Two read heads and one write head: the second read head stands on the right, not below the inputs."""
    both = found(one_hot(4, [0, 1]))
    both["heads"].append({"kind": "read", "number": 2, "weights": one_hot(4, [2, 3])})
    cells = heads_html(both).split("</div>")

    assert [re.findall("<h3>(.*?)</h3>", cell) for cell in cells[2:6]] == [
        ["write head, by memory row"],
        ["read head 1, by memory row"],
        [],
        ["read head 2, by memory row"],
    ]
