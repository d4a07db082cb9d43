"""`spade launch ssh`: the hosts of a hostfile, reached by the plain ssh program."""
