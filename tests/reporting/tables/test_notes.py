import math

from milkshake_mbp.reporting.tables import compare, find_runs, notes

from .helpers import write_run


def test_notes_on_mnist(mnist):
    text = " ".join(notes(compare(mnist, "mnist", [500, 784, 1000])))
    assert "Width 784: SGD, momentum 0.9, learning rate 0.02, weight decay 0.0001, batch 256, 60 epochs." in text
    assert "precision" not in text
    assert "Width 1000: SGD" in text and "20 epochs." in text
    assert "∞: a training sample is misclassified" in text and "Range: the smallest" in text
    assert "The paper's row is within 0.03 of this value, the row here within 0.006." in text


def test_the_margin_that_the_paper_must_have_had(tmp_path):
    # The paper's rows at width 784 for a margin of 0.5 in place of 2, but for 0.3 nats in one of the three.
    shift = 2 * math.log(2.0 / 0.5)
    write_run(tmp_path, (23.56 - shift, 18.34 - shift, 11.68 - shift + 0.3, 3.75), margin=2.0 * math.exp(-0.05))
    write_run(tmp_path, (23, 18, math.inf, 3.75), ffn_hidden_dim=500)
    text = " ".join(notes(compare(find_runs([str(tmp_path)]), "mnist", [500, 784, 1000])))
    assert "If it were 0.50 at width 784 in the paper's networks" in text and "within 0.20 of the paper's" in text
    assert "at width 500" not in text


def test_notes_on_cifar10(tmp_path):
    text = " ".join(notes(compare([], "cifar10", [784])))
    assert "= 4.25 at width 784 with n = 50,000" in text and "(4.36 with a fifth" in text and "the paper's 4.68" in text
    assert "9.0% of the test set" in text and "12,500 steps." in text
    write_run(tmp_path, datamodule="cifar10", n=40_000, error=0.42, batch_size=128)
    text = " ".join(notes(compare(find_runs([str(tmp_path)]), "cifar10", [784])))
    assert "= 4.36 at width 784 with n = 40,000" in text
    assert "here it is 42.0%" in text and "the batch size here is 128" in text
