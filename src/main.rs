//! Parse the command line, load the configuration, call one subcommand, map the result to an exit code.
fn main() {}
