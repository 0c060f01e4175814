"""Files stay short enough to be read in one go."""

from pathlib import Path

import aihwkit_nabn

MOST = 350


def test_no_file_of_the_package_is_longer_than_it_should_be() -> None:
    package = Path(aihwkit_nabn.__file__).parent
    lengths = {str(path.relative_to(package)): len(path.read_text().splitlines()) for path in package.rglob("*.py")}
    assert len(lengths) > 200
    assert not {name: lines for name, lines in lengths.items() if lines > MOST}
