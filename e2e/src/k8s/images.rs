//! OCI images without a Docker engine: an archive that `ctr images import`, `docker load`, podman
//! and skopeo read. The same input gives the same bytes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, BufWriter, Read, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use flate2::{Compression, write::GzEncoder};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::k8s::process;

/// A user without rights, as distroless images number it.
const NONROOT: u32 = 65532;
/// Users and groups of every image.
const PASSWD: &str = "root:x:0:0:root:/root:/sbin/nologin\n\
    nonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n";
/// See [`PASSWD`].
const GROUP: &str = "root:x:0:\nnonroot:x:65532:\n";
/// Names are looked for in files and in DNS.
const NSSWITCH: &str = "hosts: files dns\n";
/// Images are written in the same moment.
const CREATED: &str = "1970-01-01T00:00:00Z";
/// Programs are large, and an image is made often and sent nowhere: little effort.
const EFFORT: Compression = Compression::fast();

/// One file of an image, at its absolute path.
#[derive(Clone, Debug)]
pub enum Entry {
    /// A copy of a file of this machine, executable.
    Program(PathBuf),
    /// A file with this text.
    Text(String),
    /// A symbolic link.
    Link(String),
    /// A folder that anybody may write to.
    Scratch,
}

/// An image of one layer.
pub struct Image {
    name: String,
    tag: String,
    entrypoint: Vec<String>,
    user: u32,
    entries: BTreeMap<String, Entry>,
}

/// The server's: `cairn`, and `etcd` as a link to it.
pub fn cairn(binary: &Path) -> Result<Image> {
    let mut image = Image::new("cairn.test/cairn", env!("CARGO_PKG_VERSION"), NONROOT);
    image.program("/usr/local/bin/cairn", binary)?;
    image.add("/usr/local/bin/etcd", Entry::Link("cairn".to_owned()));
    image.entrypoint(&["/usr/local/bin/cairn"]);
    Ok(image)
}

/// The operator's.
pub fn operator(binary: &Path) -> Result<Image> {
    let mut image = Image::new(
        "cairn.test/cairn-operator",
        env!("CARGO_PKG_VERSION"),
        NONROOT,
    );
    image.program("/usr/local/bin/cairn-operator", binary)?;
    image.entrypoint(&["/usr/local/bin/cairn-operator"]);
    Ok(image)
}

/// For tests: a shell, the usual commands, and etcdctl.
pub fn tools(etcdctl: &Path) -> Result<Image> {
    let mut image = Image::new("cairn.test/tools", "1", NONROOT);
    let busybox = process::find("busybox")
        .context("no busybox; install the Debian package busybox-static")?;
    image.program("/bin/busybox", &busybox)?;
    let list = process::run(&busybox.to_string_lossy(), &["--list"])?;
    for applet in list.lines().filter(|&applet| applet != "busybox") {
        image.add(&format!("/bin/{applet}"), Entry::Link("busybox".to_owned()));
    }
    image.program("/usr/local/bin/etcdctl", etcdctl)?;
    image.entrypoint(&["/bin/sh"]);
    Ok(image)
}

/// What a pod's sandbox runs.
pub(crate) fn pause(binary: &Path) -> Result<Image> {
    let mut image = Image::new("cairn.test/pause", "1", NONROOT);
    image.program("/pause", binary)?;
    image.entrypoint(&["/pause"]);
    Ok(image)
}

impl Image {
    /// An empty one, whose processes run as `user`.
    pub fn new(name: &str, tag: &str, user: u32) -> Self {
        let mut image = Self {
            name: name.to_owned(),
            tag: tag.to_owned(),
            entrypoint: Vec::new(),
            user,
            entries: BTreeMap::new(),
        };
        image.add("/etc/passwd", Entry::Text(PASSWD.to_owned()));
        image.add("/etc/group", Entry::Text(GROUP.to_owned()));
        image.add("/etc/nsswitch.conf", Entry::Text(NSSWITCH.to_owned()));
        image.add("/tmp", Entry::Scratch);
        image
    }

    /// By which name nodes know it.
    pub fn reference(&self) -> String {
        format!("{}:{}", self.name, self.tag)
    }

    /// What it runs when nothing else is said.
    pub fn entrypoint(&mut self, command: &[&str]) {
        self.entrypoint = command.iter().map(|&word| word.to_owned()).collect();
    }

    /// Adds or replaces what is at `path`.
    pub fn add(&mut self, path: &str, entry: Entry) {
        self.entries.insert(path.to_owned(), entry);
    }

    /// Adds a program with the shared libraries that it names, each at its own path.
    pub fn program(&mut self, path: &str, binary: &Path) -> Result<()> {
        for library in libraries(binary)? {
            self.add(&library, Entry::Program(PathBuf::from(&library)));
        }
        self.add(path, Entry::Program(binary.to_owned()));
        Ok(())
    }

    /// Writes the archive to `path`, which either has the whole of it afterwards or what was
    /// there before.
    pub fn write(&self, path: &Path) -> Result<()> {
        let folder = path.parent().context("the archive's path has no folder")?;
        fs::create_dir_all(folder)?;
        let layer = tempfile::NamedTempFile::new_in(folder)?;
        let (digest, content) = self.write_layer(layer.as_file())?;
        let size = layer.as_file().metadata()?.len();

        let config = serde_json::to_vec(&self.config(&content))?;
        let config_digest = hex::encode(Sha256::digest(&config));
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": format!("sha256:{config_digest}"),
                "size": config.len(),
            },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": format!("sha256:{digest}"),
                "size": size,
            }],
        }))?;
        let manifest_digest = hex::encode(Sha256::digest(&manifest));
        let index = serde_json::to_vec(&self.index(&manifest_digest, manifest.len()))?;

        let archive = tempfile::NamedTempFile::new_in(folder)?;
        let mut tar = tar::Builder::new(BufWriter::new(archive.as_file()));
        let blob = |digest: &str| format!("blobs/sha256/{digest}");
        append(&mut tar, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        append(&mut tar, "index.json", &index)?;
        append(&mut tar, &blob(&manifest_digest), &manifest)?;
        append(&mut tar, &blob(&config_digest), &config)?;
        let mut header = header(tar::EntryType::Regular, 0o644, size);
        tar.append_data(&mut header, blob(&digest), File::open(layer.path())?)?;
        tar.into_inner()?.flush()?;
        // Temporary files are their owner's only.
        fs::set_permissions(archive.path(), fs::Permissions::from_mode(0o644))?;
        archive.persist(path)?;
        Ok(())
    }

    fn config(&self, content: &str) -> serde_json::Value {
        json!({
            "created": CREATED,
            "architecture": architecture(),
            "os": "linux",
            "config": {
                "User": format!("{0}:{0}", self.user),
                "Entrypoint": self.entrypoint,
                "Env": ["PATH=/usr/local/bin:/usr/bin:/bin"],
                "WorkingDir": "/",
                "Labels": { "org.opencontainers.image.title": self.name },
            },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{content}")] },
            "history": [{ "created": CREATED, "created_by": "make images" }],
        })
    }

    fn index(&self, digest: &str, size: usize) -> serde_json::Value {
        json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [{
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": format!("sha256:{digest}"),
                "size": size,
                "platform": { "architecture": architecture(), "os": "linux" },
                "annotations": {
                    "io.containerd.image.name": self.reference(),
                    "org.opencontainers.image.ref.name": self.tag,
                },
            }],
        })
    }

    /// Writes the layer, compressed; gives its digest and that of its content.
    fn write_layer(&self, file: &File) -> Result<(String, String)> {
        let compressed = Hashed::new(BufWriter::new(file));
        let content = Hashed::new(GzEncoder::new(compressed, EFFORT));
        let mut tar = tar::Builder::new(content);
        for folder in self.folders() {
            let mut header = header(tar::EntryType::Directory, 0o755, 0);
            tar.append_data(&mut header, format!("{folder}/"), io::empty())?;
        }
        for (path, entry) in &self.entries {
            append_entry(&mut tar, path.trim_start_matches('/'), entry)?;
        }
        let (content, encoder) = tar.into_inner()?.finish();
        let (digest, mut file) = encoder.finish()?.finish();
        file.flush()?;
        Ok((digest, content))
    }

    /// The folders above all entries, the upper ones first.
    fn folders(&self) -> BTreeSet<String> {
        let mut folders = BTreeSet::new();
        for path in self.entries.keys() {
            for above in Path::new(path.trim_start_matches('/')).ancestors().skip(1) {
                if !above.as_os_str().is_empty() {
                    folders.insert(above.display().to_string());
                }
            }
        }
        folders
    }
}

fn append_entry<W: Write>(tar: &mut tar::Builder<W>, path: &str, entry: &Entry) -> Result<()> {
    match entry {
        Entry::Program(source) => {
            let file = File::open(source)
                .with_context(|| format!("no {} to put into an image", source.display()))?;
            let size = file.metadata()?.len();
            let mut header = header(tar::EntryType::Regular, 0o755, size);
            // A file that grows meanwhile must not spoil the archive.
            tar.append_data(&mut header, path, file.take(size))?;
        }
        Entry::Text(text) => append(tar, path, text.as_bytes())?,
        Entry::Link(target) => {
            let mut header = header(tar::EntryType::Symlink, 0o777, 0);
            tar.append_link(&mut header, path, target)?;
        }
        Entry::Scratch => {
            let mut header = header(tar::EntryType::Directory, 0o1777, 0);
            tar.append_data(&mut header, format!("{path}/"), io::empty())?;
        }
    }
    Ok(())
}

fn append<W: Write>(tar: &mut tar::Builder<W>, path: &str, content: &[u8]) -> Result<()> {
    let mut header = header(tar::EntryType::Regular, 0o644, content.len() as u64);
    tar.append_data(&mut header, path, content)?;
    Ok(())
}

/// Nothing in it depends on who makes the archive, or when.
fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The shared libraries and the loader that a program names, as absolute paths.
fn libraries(binary: &Path) -> Result<Vec<String>> {
    ensure!(
        binary.exists(),
        "no {} to put into an image",
        binary.display()
    );
    let output = Command::new("ldd").arg(binary).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    // A static program names none, for which ldd fails.
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        let fixed = complaint.contains("not a dynamic executable");
        ensure!(fixed, "ldd {}: {complaint}", binary.display());
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for line in text.lines() {
        ensure!(
            !line.contains("not found"),
            "{} lacks a library: {}",
            binary.display(),
            line.trim()
        );
        found.extend(line.split_whitespace().find(|word| word.starts_with('/')));
    }
    Ok(found.into_iter().map(str::to_owned).collect())
}

/// Hashes what goes through.
struct Hashed<W> {
    inner: W,
    hash: Sha256,
}

impl<W> Hashed<W> {
    fn new(inner: W) -> Self {
        let hash = Sha256::new();
        Self { inner, hash }
    }

    fn finish(self) -> (String, W) {
        (hex::encode(self.hash.finalize()), self.inner)
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Image {
        let mut image = Image::new("cairn.test/sample", "1", NONROOT);
        image.program("/bin/sh", Path::new("/bin/sh")).unwrap();
        image.add("/usr/local/bin/again", Entry::Link("/bin/sh".to_owned()));
        image.entrypoint(&["/bin/sh"]);
        image
    }

    fn files(archive: &Path) -> BTreeMap<String, Vec<u8>> {
        let mut archive = tar::Archive::new(File::open(archive).unwrap());
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            (entry.path().unwrap().display().to_string(), content)
        });
        entries.collect()
    }

    #[test]
    fn the_same_input_gives_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (folder.path().join("a/1.tar"), folder.path().join("b/2.tar"));
        sample().write(&first).unwrap();
        sample().write(&second).unwrap();
        let bytes = fs::read(&first).unwrap();
        assert!(bytes == fs::read(&second).unwrap());

        let mut other = sample();
        other.add("/etc/extra", Entry::Text("x".to_owned()));
        other.write(&second).unwrap();
        assert!(bytes != fs::read(&second).unwrap());
    }

    /// Follows the digests from the index to the files, as who imports it does.
    #[test]
    fn digests_lead_to_the_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image.tar");
        sample().write(&path).unwrap();
        let files = files(&path);
        let blob = |descriptor: &serde_json::Value| {
            let digest = descriptor["digest"].as_str().unwrap();
            let hash = digest.strip_prefix("sha256:").unwrap();
            let content = &files[&format!("blobs/sha256/{hash}")];
            assert_eq!(hex::encode(Sha256::digest(content)), hash);
            assert_eq!(descriptor["size"], content.len());
            content.clone()
        };
        let json = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).unwrap();
        let index = json(&files["index.json"]);
        let manifest = json(&blob(&index["manifests"][0]));
        let config = json(&blob(&manifest["config"]));
        assert_eq!(config["config"]["User"], "65532:65532");

        let layer = blob(&manifest["layers"][0]);
        let mut content = Vec::new();
        flate2::read::GzDecoder::new(layer.as_slice())
            .read_to_end(&mut content)
            .unwrap();
        let digest = format!("sha256:{}", hex::encode(Sha256::digest(&content)));
        assert_eq!(config["rootfs"]["diff_ids"][0], digest);

        let mut layer = tar::Archive::new(content.as_slice());
        let mut names = Vec::new();
        for entry in layer.entries().unwrap() {
            let mut entry = entry.unwrap();
            let header = entry.header().clone();
            assert_eq!(
                (
                    header.mtime().unwrap(),
                    header.uid().unwrap(),
                    header.gid().unwrap()
                ),
                (0, 0, 0)
            );
            let name = entry.path().unwrap().display().to_string();
            if name == "bin/sh" {
                let mut program = Vec::new();
                entry.read_to_end(&mut program).unwrap();
                assert!(program == fs::read("/bin/sh").unwrap());
            }
            names.push(name);
        }
        for wanted in [
            "bin/sh",
            "usr/local/bin/again",
            "etc/passwd",
            "tmp/",
            "usr/local/bin/",
        ] {
            assert!(
                names.iter().any(|name| name == wanted),
                "no {wanted}: {names:?}"
            );
        }
        assert!(
            names.iter().any(|name| name.contains("libc.so")),
            "{names:?}"
        );
    }

    #[test]
    fn a_missing_program_is_named() {
        let mut image = sample();
        let missing = image
            .program("/bin/x", Path::new("/nowhere/x"))
            .unwrap_err();
        assert!(missing.to_string().contains("/nowhere/x"), "{missing}");
    }
}
