//! A real Kubernetes on this machine, for tests and for people.
//!
//! `binaries` builds it from Go modules; `cluster` is what tests hold; `supervise` is the one process
//! outside: it makes the instance's folder and control groups, starts the rest in namespaces of
//! their own and leaves nothing behind. In there `control` is the first process of the control
//! plane and `node` that of each node. `config`, `certs` and `layout` say what lies where, and
//! `images` makes what pods run. Start reading in `supervise`.
//!
//! No packet of it leaves: the namespaces have no link to the machine's network.

mod binaries;
mod certs;
mod cgroups;
mod cluster;
mod config;
mod control;
mod images;
mod layout;
mod machine;
mod node;
mod process;
mod recycle;
mod supervise;

pub use binaries::{build, helm, kubernetes};
pub use cluster::{Kubernetes, Output};
pub use control::control;
pub use images::{Entry, Image, cairn, operator, tools};
pub use layout::{Layout, Store};
pub use node::node;
pub use recycle::recycle;
pub use supervise::{Options, down, supervise, up};
