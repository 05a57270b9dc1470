"""A pruned network as a few hundred bytes, and the test error that their number guarantees.

python exps/certificate.py -c cfgs/certificate_mnist.yaml [--key value ...]
python exps/certificate.py --verify FILE.mbp [-c cfgs/certificate_mnist.yaml] [--key value ...]

The second recomputes the guarantee from the bytes and the data alone.
"""

import os

# Threads that spin while they wait stall one another where cores are few or shared. Read once, when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import sys

from milkshake_mbp.experiment.certificate.run import make_certificate
from milkshake_mbp.experiment.certificate.settings import Certifying
from milkshake_mbp.experiment.certificate.show import certificate_table
from milkshake_mbp.experiment.certificate.verify import read_file_argument, verify
from milkshake_mbp.experiment.run import make_console
from milkshake_mbp.framework.args import parse_args
from milkshake_mbp.framework.cli import run_cli


def main() -> None:
    """Make a certificate, or verify one."""
    console = make_console()
    file, argv = read_file_argument(sys.argv[1:])
    args = parse_args(argv, Certifying)
    if file is not None:
        verify(file, args, console)
        return
    files, result = make_certificate(args, console)
    console.print(certificate_table(result))
    console.print(f"Results: {files.folder}")


if __name__ == "__main__":
    run_cli(main)
