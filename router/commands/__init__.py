"""The command line beside `serve`: what is wrong here, the engines of a running gateway, and the flags they share."""
