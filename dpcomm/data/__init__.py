"""From raw records to what ranks map into memory.

`schema` declares the data, `clean` and `encode` turn raw lines into rows, `prepare` (Spark) and
`embedded` (Polars) run them over a whole input, `shards` reads the result. Importing this package
starts no JVM.
"""
