//! Histories of a store that does nothing wrong must pass; each kind of wrong that is planted in
//! one must be found, and called by its name.

mod honest;
mod planted;
mod searched;
