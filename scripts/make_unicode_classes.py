"""Make src/groundup/tokenizer/unicode_classes.bin from the Unicode Character Database.

Needs `pip install unicodedata2==16.0.0`, which is that database in the version that the table is for.
"""

from pathlib import Path

import numpy as np
import unicodedata2  # pyright: ignore[reportMissingImports]

from groundup.tokenizer import unicode_classes as uc

# The property White_Space, which is what \s means in the split patterns.
WHITE_SPACE = [
    *range(0x09, 0x0E),
    0x20,
    0x85,
    0xA0,
    0x1680,
    *range(0x2000, 0x200B),
    0x2028,
    0x2029,
    0x202F,
    0x205F,
    0x3000,
]
CLASS_OF = {
    **dict.fromkeys(("Lu", "Lt"), uc.UPPER),
    "Ll": uc.LOWER,
    **dict.fromkeys(("Lm", "Lo"), uc.LETTER),
    **dict.fromkeys(("Nd", "Nl", "No"), uc.NUMBER),
    **dict.fromkeys(("Mn", "Mc", "Me"), uc.MARK),
    "Cn": uc.UNASSIGNED,
}


def main() -> None:
    """Write the table of the installed unicodedata2, which must be of the right version."""
    version = unicodedata2.unidata_version
    if not version.startswith(uc.UNICODE_VERSION):
        raise SystemExit(f"unicodedata2 has Unicode {version}; install unicodedata2=={uc.UNICODE_VERSION}.0")
    classes = np.array(
        [CLASS_OF.get(unicodedata2.category(chr(code)), uc.OTHER) for code in range(uc.CODE_POINTS)], np.uint8
    )
    classes[WHITE_SPACE] = uc.WHITE
    path = Path(uc.__file__).with_suffix(".bin")
    path.write_bytes(uc.write_tables(classes))
    print(f"{path}: {path.stat().st_size:,} bytes, Unicode {version}")


if __name__ == "__main__":
    main()
