//! The command line, the environment and the file, as etcd reads them.

use std::{collections::BTreeSet, time::Duration};

use crate::{Command, Config, Error, FLAGS, parse, values};

fn run(args: &[&str], env: &[(&str, &str)], file: &str) -> Result<Command, Error> {
    let args = args.iter().map(|&arg| arg.to_owned());
    let env = env
        .iter()
        .map(|&(name, value)| (name.to_owned(), value.to_owned()));
    parse(args, env, |_| Ok(file.to_owned()))
}

fn config(args: &[&str]) -> Config {
    match run(args, &[], "").unwrap() {
        Command::Run(config) => *config,
        other => panic!("{other:?}"),
    }
}

#[test]
fn there_are_etcds_113_flags_and_each_default_is_a_value() {
    // Besides these there are --config-file, --version and --help.
    let names: BTreeSet<&str> = FLAGS.iter().map(|flag| flag.name).collect();
    assert_eq!(names.len(), FLAGS.len());
    assert_eq!(FLAGS.len(), 113);
    for flag in FLAGS {
        assert_eq!(values::problem(flag.kind, flag.default), None, "{flag:?}");
    }
}

#[test]
fn the_defaults_are_etcds() {
    let config = config(&[]);
    assert_eq!(config.data_dir.to_str(), Some("default.etcd"));
    assert_eq!(config.election_ticks, 10);
    assert_eq!(config.heartbeat.as_millis(), 100);
    assert_eq!(config.max_request_bytes, 1_572_864);
    assert_eq!(config.advertise_client, ["http://localhost:2379"]);
    let urls: Vec<&String> = config.initial_cluster["default"].iter().collect();
    assert_eq!(urls, ["http://localhost:2380"]);
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
}

#[test]
fn a_check_names_what_it_reads() {
    for args in [
        &["check", "--data-dir=d", "-w", "json"][..],
        &["check", "-w=json", "--data-dir", "d"],
        &["check", "--data-dir", "d", "--write-out=json"],
    ] {
        match run(args, &[], "") {
            Ok(Command::Check { config, json: true }) => {
                assert_eq!(config.data_dir.to_str(), Some("d"));
            }
            other => panic!("{args:?}: {other:?}"),
        }
    }
    let simple = run(&["check", "--data-dir=d"], &[], "");
    assert!(matches!(simple, Ok(Command::Check { json: false, .. })));
    assert_eq!(run(&["check", "-h"], &[], ""), Ok(Command::Help));
    for args in [
        &["check"][..],
        &["check", "--data-dir=d", "-w"],
        &["check", "--data-dir=d", "-w", "table"],
        &["check", "--data-dir=d", "--nonsense"],
    ] {
        let refused = run(args, &[], "");
        assert!(
            matches!(refused, Err(Error::Usage(_))),
            "{args:?}: {refused:?}"
        );
    }
}

#[test]
fn checks_of_corruption_are_switched_on_as_in_etcd() {
    let off = config(&["--compact-hash-check-time=5s"]);
    assert_eq!(off.compact_hash_check_time, None);
    assert!(!off.initial_corrupt_check && off.corrupt_check_time.is_zero());
    let on = config(&[
        "--feature-gates=InitialCorruptCheck=true,CompactHashCheck=true,LeaseCheckpoint=true,\
         LeaseCheckpointPersist=true",
        "--corrupt-check-time=1m",
    ]);
    assert!(on.initial_corrupt_check);
    let minute = Duration::from_secs(60);
    assert_eq!(on.corrupt_check_time, minute);
    assert_eq!(on.compact_hash_check_time, Some(minute));
    let told = ["the feature gate LeaseCheckpointPersist has no effect"];
    assert_eq!(on.warnings, told);
    assert!(on.lease_checkpoint && !off.lease_checkpoint);
}

#[test]
fn flags_are_written_as_in_go() {
    for args in [
        &["--name=n"][..],
        &["-name=n"],
        &["--name", "n"],
        &["-name", "n"],
    ] {
        assert_eq!(config(args).name, "n");
    }
    assert!(!config(&["--pre-vote=false"]).pre_vote);
    assert!(config(&["--unsafe-no-fsync", "--name", "n"]).unsafe_no_fsync);
    assert_eq!(config(&["--snapshot", "5", "-v"]).name, "default");
    assert_eq!(run(&["--version"], &[], ""), Ok(Command::Version));
    assert_eq!(run(&["-h"], &[], ""), Ok(Command::Help));
    assert_eq!(run(&["export", "-h", "x"], &[], ""), Ok(Command::Help));
}

#[test]
fn what_is_wrong_is_said() {
    let check = |args: &[&str], expected: &str| {
        let error = run(args, &[], "").unwrap_err().to_string();
        assert!(error.contains(expected), "{args:?}: {error}");
    };
    check(&["--nonsense"], "flag provided but not defined: -nonsense");
    check(&["start"], "\"start\" is not a valid flag");
    check(&["--name"], "flag needs an argument: -name");
    check(
        &["--heartbeat-interval", "x"],
        "invalid value \"x\" for flag -heartbeat-interval: parse error",
    );
    check(&["--pre-vote", "false"], "\"false\" is not a valid flag");
    check(
        &["--election-timeout=400"],
        "--election-timeout[400ms] should be at least as 5 times as --heartbeat-interval[100ms]",
    );
    check(&["--election-timeout=60000"], "is too long");
    check(
        &["--compact-hash-check-time=0s"],
        "--compact-hash-check-time must be >0 (set to 0s)",
    );
    check(
        &["--listen-client-urls=http://127.0.0.1:1"],
        "--advertise-client-urls is required when --listen-client-urls is set explicitly",
    );
    check(&["--initial-cluster=x"], "has not the form name=URL");
    check(
        &["--listen-peer-urls=http://example.com:1"],
        "expected IP in URL for binding",
    );
    check(
        &["--listen-peer-urls=https://127.0.0.1:1"],
        "cannot listen on TLS for 127.0.0.1:1: KeyFile and CertFile are not presented",
    );
    check(
        &["--listen-peer-urls=https://example.com:1"],
        "expected IP in URL for binding",
    );
    check(
        &["--discovery-srv=example.com"],
        "--discovery-srv is not there yet",
    );
    check(
        &["--cors=http://a.example"],
        "URL address does not have the form \"host:port\": http://a.example",
    );
    check(
        &["--cors=http://a.example:80,*"],
        "invalid value \"http://a.example:80,*\" for flag -cors",
    );
    check(
        &["--listen-client-http-urls=http://localhost:2379"],
        "cannot bind both --listen-client-urls and --listen-client-http-urls on the same url \
         http://localhost:2379",
    );
    check(&["--log-level=loud"], "expected one of: debug, info");
}

#[test]
fn the_environment_fills_in_and_never_shadows() {
    let env = [
        ("ETCD_NAME", "n"),
        ("ETCD_ON_K8S", "yes"),
        ("ETCD_SNAPSHOT_COUNT", "5"),
    ];
    match run(&[], &env, "").unwrap() {
        Command::Run(config) => {
            assert_eq!(config.name, "n");
            assert_eq!(
                config.warnings,
                [
                    "unrecognized environment variable ETCD_ON_K8S",
                    "--snapshot-count has no effect: nothing here needs it"
                ]
            );
        }
        other => panic!("{other:?}"),
    }
    let error = run(&["--name=m"], &env, "").unwrap_err().to_string();
    assert!(error.starts_with("conflicting environment variable \"ETCD_NAME\" is shadowed"));
    assert!(run(&[], &[("ETCD_PRE_VOTE", "maybe")], "").is_err());
}

#[test]
fn a_file_stands_alone() {
    let file = "name: f\nheartbeat-interval: 50\nwatch-progress-notify-interval: 5000000000\n\
                log-outputs: [stderr]\nauto-compaction-retention: \"0\"\nnobody: 1\n\
                client-transport-security:\n  client-cert-auth: false\n  cert-file:\n";
    match run(
        &["--name=m", "--config-file=x"],
        &[("ETCD_NAME", "e")],
        file,
    )
    .unwrap()
    {
        Command::Run(config) => {
            assert_eq!(config.name, "f");
            assert_eq!(config.heartbeat.as_millis(), 50);
            assert_eq!(config.progress_interval.as_secs(), 5);
            assert_eq!(config.log_outputs, ["stderr"]);
            assert_eq!(config.warnings.len(), 2, "{:?}", config.warnings);
        }
        other => panic!("{other:?}"),
    }
    assert!(run(&["--config-file=x"], &[], "name: [").is_err());
}

const PAIR: [&str; 2] = ["--cert-file=c.pem", "--key-file=k.pem"];
const HTTPS: [&str; 2] = [
    "--listen-client-urls=https://127.0.0.1:1",
    "--advertise-client-urls=https://127.0.0.1:1",
];

#[test]
fn what_would_leave_connections_unsafe_is_said_in_etcds_words() {
    let check = |args: &[&[&str]], expected: &str| {
        let error = run(&args.concat(), &[], "").unwrap_err().to_string();
        assert!(error.contains(expected), "{args:?}: {error}");
    };
    check(
        &[&HTTPS],
        "TLS key/cert (--cert-file, --key-file) must be provided for client url \
         https://127.0.0.1:1 with HTTPS scheme",
    );
    check(
        &[&["--listen-metrics-urls=https://127.0.0.1:1"]],
        "client TLS key/cert (--cert-file, --key-file) must be provided for metrics secure url",
    );
    check(
        &[&HTTPS, &PAIR[..1]],
        "KeyFile and CertFile must both be present[key: , cert: c.pem]: give --cert-file and \
         --key-file together",
    );
    check(
        &[&["--peer-key-file=k"]],
        "KeyFile and CertFile must both be present[key: k, cert: ]: give --peer-cert-file and \
         --peer-key-file together",
    );
    check(
        &[&PAIR, &["--client-key-file=k"]],
        "ClientKeyFile and ClientCertFile must both be present or both absent[key: k, cert: ]",
    );
    check(
        &[&[
            "--peer-cert-allowed-cn=a",
            "--peer-cert-allowed-hostname=b,c",
        ]],
        "AllowedCNs and AllowedHostnames are mutually exclusive (cns=[\"a\"], \
         hostnames=[\"b\", \"c\"])",
    );
    for more in [
        "--client-cert-auth",
        "--trusted-ca-file=ca",
        "--client-crl-file=crl",
        "--client-cert-allowed-hostname=h",
    ] {
        check(
            &[&["--auto-tls", more]],
            "--auto-tls lets everybody connect",
        );
    }
    check(
        &[&["--peer-auto-tls", "--peer-cert-allowed-cn=a"]],
        "--peer-auto-tls lets everybody connect",
    );
    check(
        &[&["--auto-tls", "--self-signed-cert-validity=0"]],
        "selfSignedCertValidity is invalid,it should be greater than 0",
    );
    check(
        &[&["--tls-min-version=TLS1.3", "--tls-max-version=TLS1.2"]],
        "min version (TLS1.3) is greater than max version (TLS1.2)",
    );
    check(
        &[&["--tls-min-version=TLS1.3", "--cipher-suites=X"]],
        "cipher suites cannot be configured when only TLS1.3 is enabled",
    );
    let file = "client-transport-security: {allowed-cn: [a]}";
    assert!(run(&["--config-file=x"], &[], file).is_err());
}

#[test]
fn both_sides_are_secured_by_their_own_flags() {
    let config = config(&[
        HTTPS[0],
        HTTPS[1],
        PAIR[0],
        PAIR[1],
        "--client-cert-auth",
        "--trusted-ca-file=ca.pem",
        "--client-crl-file=crl",
        "--client-cert-allowed-hostname=a, b",
        "--listen-peer-urls=https://127.0.0.1:2",
        "--initial-advertise-peer-urls=https://127.0.0.1:2",
        "--peer-cert-file=pc",
        "--peer-key-file=pk",
        "--peer-client-cert-file=pcc",
        "--peer-client-key-file=pck",
        "--peer-cert-allowed-cn=n",
        "--peer-skip-client-san-verification",
        "--tls-max-version=TLS1.2",
        "--cipher-suites=X,Y",
    ]);
    assert_eq!(config.warnings, [] as [&str; 0]);
    let client = &config.client_tls;
    assert_eq!(
        client.certificate.as_ref().unwrap().key.to_str(),
        Some("k.pem")
    );
    assert_eq!(client.allowed_hostnames, ["a", "b"]);
    assert!(client.client_cert_auth && client.crl.is_some());
    let peer = &config.peer_tls;
    let shown = peer.client_certificate.as_ref().unwrap();
    assert_eq!(shown.certificate.to_str(), Some("pcc"));
    assert_eq!(peer.allowed_cns, ["n"]);
    assert!(peer.skip_san_check && !peer.client_cert_auth && peer.trusted_ca.is_none());
    assert!(config.tls.max_is_12 && !config.tls.min_is_13);
    assert_eq!(config.tls.cipher_suites, ["X", "Y"]);
}

#[test]
fn what_is_ignored_beside_plain_listeners_is_said() {
    let ignored = config(&[
        PAIR[0],
        PAIR[1],
        "--client-cert-auth",
        "--trusted-ca-file=ca",
        "--auto-tls",
        "--peer-client-cert-auth",
    ]);
    let expected = [
        "ignoring client auto TLS since certs given",
        "scheme is http or unix while key and cert files are present; ignoring key and cert \
         files (http://localhost:2379)",
        "scheme is http or unix while --client-cert-auth is enabled; ignoring client cert auth \
         for this URL (http://localhost:2379)",
        "scheme is HTTP while --peer-client-cert-auth is enabled; ignoring client cert auth for \
         this URL (http://localhost:2380)",
        "client certificates are asked for without --peer-trusted-ca-file: everybody with a \
         certificate of one of the system's CAs is let in",
    ];
    assert_eq!(ignored.warnings, expected);
    let file = "peer-transport-security: {cert-file: c, key-file: k, client-cert-file: cc, \
                client-key-file: ck, allowed-cn: [a, b], skip-client-san-verification: true}";
    let Ok(Command::Run(config)) = run(&["--config-file=x"], &[], file) else {
        panic!("no configuration")
    };
    assert_eq!(config.peer_tls.allowed_cns, ["a", "b"]);
    assert!(config.peer_tls.skip_san_check);
    assert!(config.peer_tls.client_certificate.is_some());
}

#[test]
fn who_founds_is_checked_when_there_are_no_data() {
    let check = |cluster: &str, expected: &str| {
        let error = config(&[cluster]).check_founding().unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    check(
        "--initial-cluster=a=http://a:1",
        "couldn't find local name \"default\" in the initial cluster configuration",
    );
    check(
        "--initial-cluster=default=http://a:1",
        "--initial-cluster has default=http://a:1 but missing from \
         --initial-advertise-peer-urls=http://localhost:2380",
    );
    assert_eq!(config(&[]).check_founding(), Ok(()));
}

#[test]
fn a_cluster_may_name_several_urls_of_a_member() {
    let config = config(&[
        "--name=a",
        "--initial-cluster=a=http://a:1,b=http://b:1,a=http://a:2",
        "--initial-advertise-peer-urls=http://a:2,http://a:1",
    ]);
    assert_eq!(config.initial_cluster.len(), 2);
    assert_eq!(config.initial_cluster["a"].len(), 2);
}

#[test]
fn the_guards_settings_come_together_or_not_at_all() {
    let env = [
        ("CAIRN_BOOTSTRAP_RECORD", "/record/record.json"),
        ("CAIRN_BOOTSTRAP_MARKS", "/marks"),
        ("CAIRN_POD_UID", "pod"),
        ("CAIRN_CLUSTER_UID", "cluster"),
    ];
    let parse = |env: &[(&str, &str)]| {
        let env = env.iter().map(|&(k, v)| (k.to_owned(), v.to_owned()));
        crate::parse(std::iter::empty(), env, |_| unreachable!())
    };
    let Ok(crate::Command::Run(config)) = parse(&env) else {
        panic!("no configuration")
    };
    let guard = config.guard.unwrap();
    assert_eq!(
        (guard.pod_uid.as_str(), guard.cluster_uid.as_str()),
        ("pod", "cluster")
    );
    let Err(error) = parse(&env[..3]) else {
        panic!("three of four are taken")
    };
    assert!(error.to_string().contains("belong together"), "{error}");
}

#[test]
fn an_export_names_where_from_and_where_to() {
    let export = |args: &[&str]| {
        let args = args.iter().map(|arg| (*arg).to_owned());
        parse(args, std::iter::empty(), |_| unreachable!("no file"))
    };
    match export(&["export", "--data-dir=/from", "/to"]) {
        Ok(Command::Export { config, output }) => {
            assert_eq!(config.data_dir.to_str(), Some("/from"));
            assert_eq!(output.to_str(), Some("/to"));
        }
        other => panic!("{other:?}"),
    }
    for args in [&["export"][..], &["export", "--data-dir=/from"]] {
        let error = export(args).unwrap_err();
        assert!(
            error.to_string().contains("cairn export --data-dir"),
            "{error}"
        );
    }
    assert!(export(&["export", "--nonsense", "/to"]).is_err());
}
