//! Trees as tar streams, with owners, modes, links and extended attributes.
pub mod pack;
pub mod unpack;
