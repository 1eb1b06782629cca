"""What every stage needs around its library call: atomic files, records, checkpoints, devices."""
