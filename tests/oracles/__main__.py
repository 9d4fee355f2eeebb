"""Components and the step against their plain formulations: `python -m tests.oracles --recipe voc_released`.

`--only energy crf` takes some of them. Every option of the run (`--a.b VALUE`) may follow; weights are random
and the format is float32 unless told otherwise.
"""

from __future__ import annotations

import sys

from cosa_dist.config.command_line import make_parser
from jobs.benchmark import add_measuring_options, configuration, measuring_device, report_and_exit_code
from tests.oracles.comparison import compare


def main() -> int:
    parser = make_parser(__doc__ or "")
    add_measuring_options(parser)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="some components")
    arguments, rest = parser.parse_known_args()

    def make() -> object:
        config = configuration(arguments, rest, measured=True)
        return compare(config, measuring_device(arguments), arguments.rounds or 3, arguments.only)

    return report_and_exit_code(make, arguments)


if __name__ == "__main__":
    sys.exit(main())
