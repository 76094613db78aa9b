from petomo.core.errors import LONGEST, UserError


def test_what_a_file_says_cannot_flood_or_steer_a_terminal():
    assert str(UserError("a.h5: Å is fine\nso is a second line")) == "a.h5: Å is fine\nso is a second line"
    assert str(UserError("x \x1b[2J y\x07\r")) == r"x \x1b[2J y\x07\r"
    long = str(UserError("f.h5: " + 10**5 * "9" + "; give a number"))
    assert len(long) <= LONGEST + 5
    assert long.startswith("f.h5: 999")
    assert long.endswith("9; give a number")
