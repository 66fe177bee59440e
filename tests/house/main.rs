//! The whole house: the command as a user runs it, and the bundled adapters through the real server.

mod accuracy;
mod command;
