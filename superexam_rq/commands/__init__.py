"""The commands that look at a running installation, one module each; `superexam_rq.cli` puts them together."""
