"""`octavo bench goals`: octavo and its peers in one run on one machine, judged by stated goals."""
