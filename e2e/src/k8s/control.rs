//! The control plane: the first process of the instance's namespaces, and parent of its nodes.
//! When it ends, the kernel ends all of them with it.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::k8s::{
    config,
    layout::{
        CONTROL, Instance, Layout, NOWHERE, SERVICES, node_address, node_link, node_name, node_pods,
    },
    machine,
    process::{self, Daemons, STEP, command, run},
};

/// How long one step of the start may take on a busy machine.
const START: Duration = Duration::from_secs(240);
/// How long the first process of a node may take to appear.
const NODE: Duration = Duration::from_secs(30);
/// How long an answer of CoreDNS about itself may take.
const ANSWER: Duration = Duration::from_secs(2);
/// The hardware address of the bridge, which would otherwise change with its links.
const LINK: &str = "02:00:0a:63:00:01";

struct Control {
    layout: Layout,
    instance: Instance,
    daemons: Daemons,
    /// Of each running node its first process.
    nodes: BTreeMap<usize, u32>,
    began: Instant,
}

/// Runs the instance in `root` until a part of it ends that should not.
pub fn control(root: &Path) -> Result<()> {
    let layout = Layout::new(root)?;
    let mut control = Control {
        instance: layout.instance()?,
        daemons: Daemons::new(layout.logs()),
        nodes: BTreeMap::new(),
        began: Instant::now(),
        layout,
    };
    control.start()?;
    loop {
        control.tick()?;
        thread::sleep(STEP);
    }
}

impl Control {
    fn start(&mut self) -> Result<()> {
        machine::become_machine(&self.layout, "control")?;
        self.connect()?;
        self.spawn("store", config::store(&self.layout))?;
        self.tick()?;
        self.wait("the store", |_| Ok(listens("127.0.0.1:2379")))?;
        self.spawn("kube-apiserver", config::apiserver(&self.layout))?;
        self.wait("kube-apiserver", |control| {
            // Asking is dear: not before it listens.
            Ok(listens("127.0.0.1:6443") && control.kubectl(&["get", "--raw=/readyz"]).is_ok())
        })?;
        fs::write(self.layout.api_ready(), "")?;
        self.start_the_rest()?;
        self.wait("all nodes", Self::nodes_ready)?;
        self.wait("the first service account", |control| {
            Ok(control
                .kubectl(&["get", "serviceaccount", "default"])
                .is_ok())
        })?;
        self.wait("CoreDNS", |_| Ok(dns_ready()))?;
        fs::write(self.layout.ready(), "")?;
        Ok(())
    }

    fn start_the_rest(&mut self) -> Result<()> {
        let manager = config::controller_manager(&self.layout);
        self.spawn("kube-controller-manager", manager)?;
        self.spawn("kube-scheduler", config::scheduler(&self.layout))?;
        let objects = self.layout.path("objects.yaml").display().to_string();
        self.kubectl(&["create", "--filename", &objects])?;
        let corefile = self.layout.path("dns/Corefile").display().to_string();
        self.spawn("coredns", vec!["-conf".to_owned(), corefile])?;
        let mut recycle = command(std::env::current_exe()?);
        recycle.arg("recycle").arg("--dir").arg(self.layout.root());
        self.daemons.spawn("recycle", recycle)?;
        Ok(())
    }

    /// The bridge that joins the machines. It has no link to the world.
    fn connect(&self) -> Result<()> {
        run(
            "ip",
            &["link", "add", "cl0", "address", LINK, "type", "bridge"],
        )?;
        let address = format!("{CONTROL}/24");
        run("ip", &["addr", "add", &address, "dev", "cl0"])?;
        run("ip", &["link", "set", "cl0", "up"])?;
        run("ip", &["route", "add", "default", "via", NOWHERE])?;
        for number in 1..=self.instance.nodes {
            let (pods, node) = (node_pods(number), node_address(number));
            run("ip", &["route", "add", &pods, "via", &node])?;
        }
        Ok(())
    }

    fn spawn(&mut self, name: &str, arguments: Vec<String>) -> Result<()> {
        let mut program = command(self.layout.program(name));
        program.args(arguments);
        self.daemons.spawn(name, program)?;
        Ok(())
    }

    fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let kubeconfig = format!("--kubeconfig={}", self.layout.kubeconfig().display());
        let cache = format!(
            "--cache-dir={}",
            self.layout.path("kubectl-cache").display()
        );
        let program = self.layout.program("kubectl").display().to_string();
        run(
            &program,
            &[&[kubeconfig.as_str(), &cache], arguments].concat(),
        )
    }

    /// Waits for a step of the start, and says when it is done.
    fn wait(&mut self, what: &str, done: impl Fn(&Self) -> Result<bool>) -> Result<()> {
        process::wait_for(what, START, || {
            self.tick()?;
            Ok(done(self)?.then_some(()))
        })?;
        println!("{:6.1} s  {what}", self.began.elapsed().as_secs_f32());
        Ok(())
    }

    fn nodes_ready(&self) -> Result<bool> {
        let path = "jsonpath={.items[*].status.conditions[?(@.type==\"Ready\")].status}";
        let states = self.kubectl(&["get", "nodes", "--output", path])?;
        let ready = states.split_whitespace().filter(|&state| state == "True");
        Ok(ready.count() == self.instance.nodes)
    }

    /// One look at everything: what ended, and which nodes shall come or go.
    fn tick(&mut self) -> Result<()> {
        for ended in self.daemons.reap()? {
            let all = 1..=self.instance.nodes;
            let node = all
                .into_iter()
                .find(|&number| node_name(number) == ended.name);
            match node {
                Some(number) if self.layout.node_down(number).exists() => {
                    self.nodes.remove(&number);
                    self.reroute()?;
                    fs::remove_file(self.layout.node_running(number))?;
                }
                _ => return Err(self.daemons.complaint(&ended)),
            }
        }
        for number in 1..=self.instance.nodes {
            let down = self.layout.node_down(number).exists();
            match (down, self.nodes.get(&number)) {
                // All below it end with it, at once: what is left is what was on its disk.
                (true, Some(&first)) => process::kill(first),
                (false, None) => self.start_node(number)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn start_node(&mut self, number: usize) -> Result<()> {
        let mut unshare = namespaces()?;
        unshare.args(["node", "--number", &number.to_string(), "--dir"]);
        unshare.arg(self.layout.root());
        let outer = self.daemons.spawn(&node_name(number), unshare)?;
        let first = process::wait_for("a node's first process", NODE, || {
            Ok(process::children(outer).first().copied())
        })?;
        self.link(number, first)?;
        self.nodes.insert(number, first);
        fs::write(self.layout.node_running(number), "")?;
        self.reroute()
    }

    /// Gives a node its link to the bridge.
    fn link(&self, number: usize, first: u32) -> Result<()> {
        let (name, address, first) = (format!("n{number}"), node_link(number), first.to_string());
        // The kernel takes its time to remove that of a node that crashed.
        let _ = run("ip", &["link", "del", &name]);
        let pair = ["link", "add", &name, "type", "veth", "peer", "name", "eth0"];
        run(
            "ip",
            &[&pair[..], &["address", &address, "netns", &first]].concat(),
        )?;
        run("ip", &["link", "set", &name, "master", "cl0", "up"])?;
        Ok(())
    }

    /// Services are reached through a node that runs: kube-proxy there sends answers back the
    /// same way, since this address is not a pod's.
    fn reroute(&self) -> Result<()> {
        if let Some((&number, _)) = self.nodes.first_key_value() {
            let node = node_address(number);
            run("ip", &["route", "replace", SERVICES, "via", &node])?;
        }
        Ok(())
    }
}

/// This program in namespaces of its own, whose processes end with their first one, and that with
/// `unshare`.
pub fn namespaces() -> Result<Command> {
    let own = std::env::current_exe().context("where is this program?")?;
    if !own.exists() {
        bail!("{} was replaced while it ran; start again", own.display());
    }
    let mut unshare = command("setpriv");
    // When its parent is killed, nobody else would end it.
    unshare.args(["--pdeathsig", "KILL", "unshare"]);
    unshare.args(["--net", "--mount", "--pid", "--ipc", "--uts", "--fork"]);
    unshare.args(["--mount-proc", "--kill-child=KILL", "--"]);
    unshare.arg(own);
    Ok(unshare)
}

fn listens(address: &str) -> bool {
    TcpStream::connect(address).is_ok()
}

fn dns_ready() -> bool {
    let ask = || -> Result<bool> {
        let address: SocketAddr = format!("{CONTROL}:8181").parse()?;
        let mut stream = TcpStream::connect_timeout(&address, ANSWER)?;
        stream.set_read_timeout(Some(ANSWER))?;
        stream.write_all(b"GET /ready HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.split(' ').nth(1) == Some("200"))
    };
    ask().unwrap_or(false)
}
