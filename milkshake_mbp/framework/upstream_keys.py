"""Keys that upstream Milkshake's configurations may hold and that mean nothing here, and what to write instead.

`docs/milkshake.md` has the state of every key.
"""

__all__ = ["REPLACED", "WITHOUT_EFFECT"]

# Upstream reads them and does nothing with them: they are passed over, with a line that says why.
WITHOUT_EFFECT = {
    "resnet18k_initial_width": "upstream has no model that reads it; resnet_version chooses the residual network",
    "resume_weights": "the weights of the file that the key weights names are loaded anyway",
}

_AMP = "write precision: 16-mixed"
_TUNER = "Lightning 2 has no such flag; set lr and batch_size"
_BY_MAIN = "main decides it: checkpoints, logs and results lie under out_dir"

# Flags of Lightning 1.9's Trainer that Lightning 2 or `main` has no place for, and what takes theirs.
REPLACED = {
    "amp_backend": _AMP,
    "amp_level": _AMP,
    "auto_lr_find": _TUNER,
    "auto_scale_batch_size": _TUNER,
    "auto_select_gpus": "write accelerator: gpu and devices: N",
    "callbacks": "pass callbacks to main()",
    "default_root_dir": "write out_dir",
    "enable_checkpointing": _BY_MAIN,
    "gpus": "write accelerator: gpu and devices: N",
    "ipus": "Lightning 2 has no such accelerator",
    "logger": _BY_MAIN,
    "move_metrics_to_cpu": "leave it out: metrics are summed on the device and read once an epoch",
    "multiple_trainloader_mode": "return one loader from train_dataloader, or a CombinedLoader with its mode",
    "num_processes": "write accelerator: cpu and devices: N",
    "plugins": "leave it out, or build a Trainer of your own",
    "replace_sampler_ddp": "write use_distributed_sampler",
    "resume_from_checkpoint": "write weights: FILE and resume_training: true",
    "tpu_cores": "write accelerator: tpu and devices: N",
    "track_grad_norm": "log it in on_before_optimizer_step of a model or callback of your own",
}
