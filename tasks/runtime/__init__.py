"""What every stage needs around its one call of the library: whole files, records, checkpoints, devices."""
