//! Trees as tar streams, with owners, modes, links and extended attributes.
//!
//! `header` knows the format, `pack` walks a tree, `source` and `unpack` build one.

pub mod header;
mod new_file;
pub mod pack;
mod place;
mod source;
pub mod unpack;
