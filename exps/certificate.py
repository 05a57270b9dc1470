"""Write a pruned network as a few hundred bytes, and prove a bound on its test error from them.

python exps/certificate.py -c cfgs/certificate_mnist.yaml [--key value ...]
python exps/certificate.py -c cfgs/certificate_mnist.yaml --teacher FILE|package.module:Class
python exps/certificate.py --verify FILE.mbp [-c cfgs/certificate_mnist.yaml] [--key value ...]
python exps/certificate.py --export FILE.mbp

The second form distils a network that is already trained. The third recomputes the guarantee from the bytes and the
training data alone. The last writes the network as TorchScript, FILE.pt, which runs without this package.
"""

import os

# Threads that spin while they wait stall one another where cores are few or shared. Read once, when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import sys

from milkshake_mbp.experiment.certificate.settings import Certifying
from milkshake_mbp.experiment.certificate.verify import export, read_file_argument, verify
from milkshake_mbp.framework.args import Script, parse_args
from milkshake_mbp.framework.cli import run_cli
from milkshake_mbp.framework.console import make_console
from milkshake_mbp.framework.settings import Network, Optimization, Run, TrainerFlags, keys_of

_USAGE = "[--verify FILE.mbp] [--export FILE.mbp] [-c FILE.yaml] [--key value ...]"
MAKE = Script(
    usage=_USAGE,
    notes="--verify FILE.mbp computes the guarantee again from that file and the training data alone; of the keys it "
    "reads those of the data, seed and delta. --export FILE.mbp writes the network as TorchScript beside it.",
    unused=frozenset((keys_of(Network, Optimization) - {"lr"}) | {"eval_only", "no_test", "resume_training"}),
    why="the network and its training are given by the keys of the certificate",
)
VERIFY = Script(
    usage=_USAGE,
    unused=frozenset(
        (keys_of(Network, Optimization, Run, Certifying, TrainerFlags) - {"seed", "delta", "debug"})
        | {"batch_size", "num_workers", "data_augmentation"}
    ),
    why="--verify trains nothing",
    tolerant=True,
)


def main() -> None:
    """Make a certificate, verify one, or export one."""
    console = make_console(quiet=False)
    file, argv = read_file_argument(sys.argv[1:], "--export")
    if file is not None:
        export(file.expanduser(), console)
        return
    file, argv = read_file_argument(argv)
    if file is not None and not {"-h", "--help"} & set(argv):
        verify(file.expanduser(), parse_args(argv, Certifying, script=VERIFY), console)
        return
    args = parse_args(argv, Certifying, script=MAKE)
    # Here, since these import Lightning, which takes longer than verifying.
    from milkshake_mbp.experiment.certificate.run import make_certificate
    from milkshake_mbp.experiment.certificate.show import certificate_table
    from milkshake_mbp.sweep.seeds import best_of_seeds

    console = make_console()
    files, result = (best_of_seeds if args.seeds > 1 else make_certificate)(args, console)
    console.print(certificate_table(result))
    console.print(f"Results: {files.folder}")


if __name__ == "__main__":
    run_cli(main)
