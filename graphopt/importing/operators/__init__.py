"""The functions of the table, one family of operators a file. Every module of this package is found and loaded."""
