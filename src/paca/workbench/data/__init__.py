"""From files and Hub data sets to the rows that a trainer takes."""
