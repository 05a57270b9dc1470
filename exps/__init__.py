"""The experiments, a script each: what is trained, pruned, bounded and sketched. Installed as `milkshake_mbp.exps`."""
