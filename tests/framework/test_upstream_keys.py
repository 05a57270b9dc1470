"""Every key that a configuration of upstream Milkshake may hold: read here, and in the table of docs/milkshake.md."""

import inspect
import re
from pathlib import Path

import pytest
from pytorch_lightning import Trainer

from milkshake_mbp.errors import UserError
from milkshake_mbp.framework.args import ALIASES, parse_args, trainer_kwargs
from milkshake_mbp.framework.upstream_keys import REPLACED, WITHOUT_EFFECT

DOC = Path(__file__).parents[2] / "docs" / "milkshake.md"

# Each with a value that upstream takes.
KEYS = {
    "balanced_sampler": "True",
    "batch_size": "64",
    "bert_depth": "2",
    "bert_pretrained": "False",
    "bert_version": "tiny",
    "bert_width": "128",
    "bias": "False",
    "check_val_every_n_epochs": "2",
    "check_val_every_n_steps": "100",
    "ckpt_every_n_epochs": "2",
    "ckpt_every_n_steps": "100",
    "class_weights": "[1.0, 2.0]",
    "cnn_batchnorm": "False",
    "cnn_initial_width": "16",
    "cnn_kernel_size": "5",
    "cnn_num_layers": "3",
    "cnn_padding": "1",
    "convnextv2_initial_width": "40",
    "convnextv2_pretrained": "imagenet22k",
    "convnextv2_stage124_depth": "2",
    "convnextv2_stage3_depth": "6",
    "convnextv2_version": "tiny",
    "data_augmentation": "False",
    "data_dir": "data",
    "datamodule": "svhn",
    "dropout_prob": "0.1",
    "eval_only": "True",
    "ffn_activation": "sigmoid",
    "ffn_hidden_dim": "100",
    "ffn_input_dim": "784",
    "ffn_num_layers": "4",
    "image_size": "32",
    "input_channels": "1",
    "label_noise": "0.1",
    "label_smoothing": "0.1",
    "loss": "mse",
    "lr": "1e-3",
    "lr_drop": "0.2",
    "lr_scheduler": "cosine_warmup",
    "lr_steps": "[3, 5]",
    "lr_warmup_epochs": "2",
    "metrics": "[loss, acc, acc5, acc_by_class, acc5_by_class, acc_by_group, acc5_by_group]",
    "model": "convnextv2",
    "momentum": "0.5",
    "nin_num_layers": "3",
    "nin_padding": "0",
    "nin_width": "96",
    "no_test": "True",
    "num_workers": "2",
    "optimizer": "adamw",
    "out_dir": "out",
    "persistent_workers": "True",
    "resnet18k_initial_width": "32",
    "resnet_l1_regularization": "1e-4",
    "resnet_pretrained": "False",
    "resnet_version": "50",
    "resume_training": "True",
    "resume_weights": "True",
    "seed": "3",
    "swin_pretrained": "imagenet21k",
    "swin_type": "feature_extractor",
    "swin_version": "large",
    "train_fc_only": "True",
    "val_split": "0.1",
    "vit_pretrained": "imagenet21k",
    "vit_type": "feature_extractor",
    "vit_version": "large",
    "wandb": "True",
    "wandb_dir": "w",
    "weight_decay": "5e-4",
    "weights": "a.ckpt",
}
# Only in upstream's YAML files: singular names, and a key that its two examples set and its parser no longer has.
IN_FILES = {"check_val_every_n_epoch": "2", "ckpt_every_n_epoch": "2", "resnet_small_input": "True"}
# The flags of Lightning 1.9's Trainer, which are upstream's keys too.
TRAINER = """
accelerator accumulate_grad_batches amp_backend amp_level auto_lr_find auto_scale_batch_size auto_select_gpus
benchmark callbacks check_val_every_n_epoch default_root_dir detect_anomaly deterministic devices enable_checkpointing
enable_model_summary enable_progress_bar fast_dev_run gpus gradient_clip_algorithm gradient_clip_val inference_mode
ipus limit_predict_batches limit_test_batches limit_train_batches limit_val_batches log_every_n_steps logger
max_epochs max_steps max_time min_epochs min_steps move_metrics_to_cpu multiple_trainloader_mode num_nodes
num_processes num_sanity_val_steps overfit_batches plugins precision profiler reload_dataloaders_every_n_epochs
replace_sampler_ddp resume_from_checkpoint strategy sync_batchnorm tpu_cores track_grad_norm use_distributed_sampler
val_check_interval
"""


@pytest.mark.parametrize("key", [*KEYS, *IN_FILES])
def test_a_key_is_read_with_upstreams_values(key, tmp_path, capsys):
    value = (KEYS | IN_FILES)[key]
    (tmp_path / "x.yaml").write_text(f"{key}: {value}\n")
    args = parse_args(["-c", str(tmp_path / "x.yaml")])
    if key in WITHOUT_EFFECT:
        assert capsys.readouterr().out.startswith(f"ignored: {key} in ")
        return
    assert capsys.readouterr().out == ""
    found = getattr(args, ALIASES.get(key, key))
    assert found != getattr(parse_args([]), ALIASES.get(key, key)) or key in (
        "data_dir",
        "out_dir",
        "data_augmentation",
    )
    if isinstance(found, (bool, str)):
        assert str(found) == value


@pytest.mark.parametrize("key", TRAINER.split())
def test_a_flag_of_the_trainer_is_a_key_or_says_what_takes_its_place(key):
    if key in inspect.signature(Trainer).parameters and key not in REPLACED:
        assert hasattr(parse_args([]), key)
    else:
        with pytest.raises(UserError, match=f'unknown key "{key}" on the command line: {re.escape(REPLACED[key])}'):
            parse_args([f"--{key}", "1"])


def test_validation_by_steps_counts_across_epochs():
    flags = trainer_kwargs(parse_args(["--check_val_every_n_steps", "100"]))
    assert (flags["val_check_interval"], flags["check_val_every_n_epoch"]) == (100, None)
    assert trainer_kwargs(parse_args([]))["check_val_every_n_epoch"] == 1


def test_the_table_has_every_key_once():
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \|", DOC.read_text(), flags=re.MULTILINE)
    names = [name for name, _ in rows]
    assert len(names) == len(set(names))
    assert set(names) == {*KEYS, *IN_FILES, *REPLACED}
    state = dict(rows)
    assert all(state[key] == "replaced" for key in REPLACED)
    assert all(state[key] == "without effect" for key in WITHOUT_EFFECT)
    assert {state[key] for key in (KEYS | IN_FILES).keys() - WITHOUT_EFFECT.keys()} == {"same", "more", "differs"}
