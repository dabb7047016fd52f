//! The configuration files of an instance, and the objects it begins with.

use std::{fs, os::unix::fs::symlink, path::Path};

use anyhow::{Context, Result};

use crate::{
    k8s::{
        binaries, certs, images,
        layout::{
            API_PORT, CONTROL, Instance, Layout, PODS, Store, VOLUME_SIZE, VOLUMES, node_address,
            node_name, node_pods,
        },
    },
    server::target_folder,
};

/// The parts of which the binary `node` consists.
const PARTS: [&str; 6] = [
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "kubectl",
];
/// Debian's folder for CNI plugins.
pub const CNI: &str = "/usr/lib/cni";
/// What `statfs` says of an overlay, on which no other one can be laid.
const OVERLAY: u64 = 0x794c_7630;

/// Writes all that the instance's processes read.
pub fn write(layout: &Layout, instance: &Instance) -> Result<()> {
    for name in ["bin", "pki", "logs", "images", "dns"] {
        fs::create_dir_all(layout.path(name))?;
    }
    programs(layout, instance.store)?;
    certs::write(layout, instance.nodes)?;
    let admin = layout.kubeconfig();
    fs::write(&admin, kubeconfig(layout, "admin")?)?;
    for part in ["kube-controller-manager", "kube-scheduler", "kube-proxy"] {
        fs::write(layout.kubeconfig_of(part), kubeconfig(layout, part)?)?;
    }
    fs::write(layout.path("dns/Corefile"), corefile(layout))?;
    fs::write(layout.path("resolv.conf"), RESOLV)?;
    // Nodes ask their own DNS, which asks nobody: names of the world do not exist here.
    fs::write(layout.path("empty"), "")?;
    fs::write(layout.path("objects.yaml"), objects(layout, instance.nodes))?;
    images::pause(&binaries::folder().join("pause"))?.write(&layout.images().join("pause.tar"))?;
    for number in 1..=instance.nodes {
        node(layout, instance, number)?;
    }
    Ok(())
}

/// Name server and search path of whoever uses the instance from outside.
const RESOLV: &str = "nameserver 10.99.0.1\n\
    search default.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n";

fn programs(layout: &Layout, store: Store) -> Result<()> {
    let built = binaries::folder();
    let link = |to: &Path, name: &str| {
        let from = layout.program(name);
        symlink(to, &from).with_context(|| format!("no link {}", from.display()))
    };
    for part in PARTS {
        link(&built.join("node"), part)?;
    }
    link(&built.join("dns"), "coredns")?;
    link(&built.join("helm"), "helm")?;
    link(&built.join("etcdctl"), "etcdctl")?;
    match store {
        Store::Cairn => link(&target_folder().join("cairn"), "store"),
        Store::Etcd => link(&built.join("etcd"), "store"),
    }
}

/// Certificates are inside, so that the file can be copied.
fn kubeconfig(layout: &Layout, user: &str) -> Result<String> {
    use base64::{Engine, prelude::BASE64_STANDARD};
    let read = |name: &str, ending: &str| -> Result<String> {
        Ok(BASE64_STANDARD.encode(fs::read(layout.pki(name, ending))?))
    };
    let (authority, certificate, key) =
        (read("ca", "crt")?, read(user, "crt")?, read(user, "key")?);
    Ok(format!(
        "apiVersion: v1
kind: Config
current-context: cairn
contexts: [{{name: cairn, context: {{cluster: cairn, user: {user}}}}}]
clusters:
- name: cairn
  cluster:
    server: https://{CONTROL}:{API_PORT}
    certificate-authority-data: {authority}
users:
- name: {user}
  user:
    client-certificate-data: {certificate}
    client-key-data: {key}
"
    ))
}

/// As kubeadm has it, without the world.
fn corefile(layout: &Layout) -> String {
    let pki = |name: &str, ending: &str| layout.pki(name, ending).display().to_string();
    let (certificate, key, authority) = (
        pki("coredns", "crt"),
        pki("coredns", "key"),
        pki("ca", "crt"),
    );
    format!(
        ".:53 {{
    errors
    bind {CONTROL}
    ready {CONTROL}:8181
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
        endpoint https://{CONTROL}:{API_PORT}
        tls {certificate} {key} {authority}
        pods insecure
        ttl 30
    }}
    cache 30 {{
        disable success cluster.local
        disable denial cluster.local
    }}
}}
"
    )
}

/// A StorageClass for claims that name none, its volumes, and what CoreDNS may read.
fn objects(layout: &Layout, nodes: usize) -> String {
    let mut text = "apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata:
  name: local
  annotations: {storageclass.kubernetes.io/is-default-class: \"true\"}
provisioner: kubernetes.io/no-provisioner
volumeBindingMode: WaitForFirstConsumer
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: coredns}
rules:
- {apiGroups: [\"\"], resources: [endpoints, services, pods, namespaces], verbs: [list, watch]}
- {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: coredns}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: coredns}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: coredns}]
"
    .to_owned();
    for number in 1..=nodes {
        let node = node_name(number);
        for volume in 1..=VOLUMES {
            let path = layout.volume(number, volume);
            text.push_str(&format!(
                "---
apiVersion: v1
kind: PersistentVolume
metadata: {{name: {node}-{volume}}}
spec:
  capacity: {{storage: {VOLUME_SIZE}}}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Retain
  storageClassName: local
  local: {{path: {}}}
  nodeAffinity:
    required:
      nodeSelectorTerms:
      - matchExpressions: [{{key: kubernetes.io/hostname, operator: In, values: [{node}]}}]
",
                path.display()
            ));
        }
    }
    text
}

fn node(layout: &Layout, instance: &Instance, number: usize) -> Result<()> {
    let folder = layout.node(number);
    for name in ["cni", "containerd", "kubelet", "kubelet-lib"] {
        fs::create_dir_all(folder.join(name))?;
    }
    for volume in 1..=VOLUMES {
        fs::create_dir_all(layout.volume(number, volume))?;
    }
    let name = node_name(number);
    fs::write(layout.kubeconfig_of(&name), kubeconfig(layout, &name)?)?;
    fs::write(
        folder.join("kubelet.yaml"),
        kubelet(layout, instance, number),
    )?;
    fs::write(folder.join("kube-proxy.yaml"), proxy(layout, number))?;
    fs::write(folder.join("containerd.toml"), containerd(layout, number)?)?;
    fs::write(folder.join("cni/10-cairn.conflist"), network(number))?;
    Ok(())
}

fn kubelet(layout: &Layout, instance: &Instance, number: usize) -> String {
    let name = node_name(number);
    let cgroup = instance.cgroup();
    let pki = |name: &str, ending: &str| layout.pki(name, ending).display().to_string();
    let (authority, certificate, key) = (pki("ca", "crt"), pki(&name, "crt"), pki(&name, "key"));
    let socket = layout.socket(number);
    let logs = layout.logs().join(format!("{name}-pods"));
    let plugins = layout.node(number).join("plugins");
    let empty = layout.path("empty");
    format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: 0.0.0.0
authentication:
  anonymous: {{enabled: false}}
  webhook: {{enabled: true}}
  x509: {{clientCAFile: {authority}}}
authorization: {{mode: Webhook}}
tlsCertFile: {certificate}
tlsPrivateKeyFile: {key}
cgroupDriver: cgroupfs
cgroupRoot: /{cgroup}/{name}
failCgroupV1: false
failSwapOn: false
oomScoreAdj: 0
containerRuntimeEndpoint: unix://{socket}
podLogsDir: {logs}
volumePluginDir: {plugins}
clusterDomain: cluster.local
clusterDNS: [{CONTROL}]
resolvConf: {empty}
seccompDefault: true
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
evictionHard: {{memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%}}
",
        socket = socket.display(),
        logs = logs.display(),
        plugins = plugins.display(),
        empty = empty.display(),
    )
}

/// The sysctls of connection tracking belong to the machine; zeros leave them alone.
fn proxy(layout: &Layout, number: usize) -> String {
    let name = node_name(number);
    let kubeconfig = layout.kubeconfig_of("kube-proxy");
    format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clientConnection: {{kubeconfig: {}}}
hostnameOverride: {name}
clusterCIDR: {PODS}
detectLocalMode: ClusterCIDR
oomScoreAdj: 0
conntrack: {{maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}}
",
        kubeconfig.display()
    )
}

/// What runs lies in the node's own /run, which ends with it as on a machine that loses power.
/// A root without CAP_SYS_RESOURCE may not lower a process's OOM score: that is not asked for.
fn containerd(layout: &Layout, number: usize) -> Result<String> {
    let folder = layout.node(number);
    let show = |name: &str| folder.join(name).display().to_string();
    let kind = rustix::fs::statfs(layout.root())?.f_type as u64;
    let snapshotter = if kind == OVERLAY {
        "native"
    } else {
        "overlayfs"
    };
    Ok(format!(
        "version = 2
root = \"{root}\"
state = \"/run/containerd\"
disabled_plugins = [
  \"io.containerd.snapshotter.v1.aufs\",
  \"io.containerd.snapshotter.v1.btrfs\",
  \"io.containerd.snapshotter.v1.devmapper\",
  \"io.containerd.snapshotter.v1.zfs\",
]
[grpc]
address = \"{socket}\"
[plugins.\"io.containerd.internal.v1.opt\"]
path = \"{opt}\"
[plugins.\"io.containerd.grpc.v1.cri\"]
sandbox_image = \"cairn.test/pause:1\"
disable_apparmor = true
restrict_oom_score_adj = true
[plugins.\"io.containerd.grpc.v1.cri\".containerd]
snapshotter = \"{snapshotter}\"
default_runtime_name = \"runc\"
[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]
runtime_type = \"io.containerd.runc.v2\"
[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]
SystemdCgroup = false
[plugins.\"io.containerd.grpc.v1.cri\".cni]
bin_dir = \"{CNI}\"
conf_dir = \"{cni}\"
",
        root = show("containerd"),
        socket = layout.socket(number).display(),
        opt = show("opt"),
        cni = show("cni"),
    ))
}

/// Which addresses were given lies in the node's /run as well.
fn network(number: usize) -> String {
    let subnet = node_pods(number);
    format!(
        r#"{{
  "cniVersion": "0.4.0",
  "name": "cairn",
  "plugins": [
    {{
      "type": "bridge", "bridge": "pods", "isGateway": true, "ipMasq": false, "hairpinMode": true,
      "ipam": {{
        "type": "host-local", "dataDir": "/run/cni",
        "ranges": [[{{"subnet": "{subnet}"}}]],
        "routes": [{{"dst": "0.0.0.0/0"}}]
      }}
    }},
    {{"type": "portmap", "capabilities": {{"portMappings": true}}}}
  ]
}}
"#
    )
}

/// The arguments of kube-apiserver.
pub fn apiserver(layout: &Layout) -> Vec<String> {
    let pki = |flag: &str, name: &str, ending: &str| {
        format!("--{flag}={}", layout.pki(name, ending).display())
    };
    vec![
        "--etcd-servers=http://127.0.0.1:2379".to_owned(),
        "--bind-address=0.0.0.0".to_owned(),
        format!("--secure-port={API_PORT}"),
        format!("--advertise-address={CONTROL}"),
        pki("tls-cert-file", "apiserver", "crt"),
        pki("tls-private-key-file", "apiserver", "key"),
        pki("client-ca-file", "ca", "crt"),
        pki("kubelet-client-certificate", "kubelet-client", "crt"),
        pki("kubelet-client-key", "kubelet-client", "key"),
        pki("kubelet-certificate-authority", "ca", "crt"),
        pki("service-account-key-file", "sa", "pub"),
        pki("service-account-signing-key-file", "sa", "key"),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        format!(
            "--service-cluster-ip-range={}",
            crate::k8s::layout::SERVICES
        ),
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--allow-privileged=true".to_owned(),
        // Webhooks are called at a pod's own address: no proxy runs beside this server.
        "--enable-aggregator-routing=true".to_owned(),
    ]
}

/// The arguments of kube-controller-manager. A node is missed sooner than by default, so that
/// tests of crashes take less time.
pub fn controller_manager(layout: &Layout) -> Vec<String> {
    let pki = |flag: &str, name: &str, ending: &str| {
        format!("--{flag}={}", layout.pki(name, ending).display())
    };
    let kubeconfig = layout.kubeconfig_of("kube-controller-manager");
    vec![
        format!("--kubeconfig={}", kubeconfig.display()),
        pki("service-account-private-key-file", "sa", "key"),
        pki("root-ca-file", "ca", "crt"),
        pki("cluster-signing-cert-file", "ca", "crt"),
        pki("cluster-signing-key-file", "ca", "key"),
        format!(
            "--flex-volume-plugin-dir={}",
            layout.path("plugins").display()
        ),
        "--use-service-account-credentials=true".to_owned(),
        "--leader-elect=false".to_owned(),
        "--bind-address=127.0.0.1".to_owned(),
        "--node-monitor-grace-period=20s".to_owned(),
    ]
}

/// The arguments of kube-scheduler.
pub fn scheduler(layout: &Layout) -> Vec<String> {
    let kubeconfig = layout.kubeconfig_of("kube-scheduler");
    vec![
        format!("--kubeconfig={}", kubeconfig.display()),
        "--leader-elect=false".to_owned(),
        "--bind-address=127.0.0.1".to_owned(),
    ]
}

/// The arguments of the store, either kind.
pub fn store(layout: &Layout) -> Vec<String> {
    vec![
        "--name=store".to_owned(),
        format!("--data-dir={}", layout.path("store").display()),
        "--listen-client-urls=http://127.0.0.1:2379".to_owned(),
        "--advertise-client-urls=http://127.0.0.1:2379".to_owned(),
        "--listen-peer-urls=http://127.0.0.1:2380".to_owned(),
        "--initial-advertise-peer-urls=http://127.0.0.1:2380".to_owned(),
        "--initial-cluster=store=http://127.0.0.1:2380".to_owned(),
    ]
}

/// The arguments of kubelet.
pub fn kubelet_arguments(layout: &Layout, number: usize) -> Vec<String> {
    let (name, folder) = (node_name(number), layout.node(number));
    vec![
        format!("--config={}", folder.join("kubelet.yaml").display()),
        format!("--kubeconfig={}", layout.kubeconfig_of(&name).display()),
        format!("--root-dir={}", folder.join("kubelet").display()),
        format!("--hostname-override={name}"),
        format!("--node-ip={}", node_address(number)),
    ]
}
