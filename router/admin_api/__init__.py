"""The registry over HTTP: what operators and pipelines do with the command line, under `/admin/v1`."""
