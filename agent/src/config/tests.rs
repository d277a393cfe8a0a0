use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(Path::new("b.toml"), text)
}

fn problem(text: &str) -> String {
    parse(text).map_or_else(
        |error| error.to_string(),
        |config| format!("accepted: {config:?}"),
    )
}

#[test]
fn an_empty_file_gives_the_defaults_and_so_do_empty_sections() {
    assert_eq!(parse("").expect("fine"), Config::default());
    assert_eq!(parse("[store]\n[log]\n").expect("fine"), Config::default());
}

#[test]
fn what_is_in_force_is_itself_a_configuration_that_says_the_same() {
    let text = r#"
        [discovery]
        enabled = false
        mdns = false
        kademlia = false
        interfaces = ["eth0", "br-lan"]
        static_peers = ["a.example:4001", "[2001:db8::7]:4001"]
        port = 0xfa1
        [exchange]
        listen = "192.0.2.7"
        port = 4_002
        max_uploads = 7
        [store]
        limit = "20 GiB"
        [origin]
        connect_timeout = "1500ms"
        stall_timeout = "2m"
        ca_file = "/etc/ssl/our \"own\".pem"
        [jobs]
        background_jobs = 1
        background_files = 2
        foreground_files = 3
        files_per_job = 4
        max_jobs = 5
        max_files_per_job = 6
        max_files = 70_000
        max_bytes = "8 TiB"
        ended_kept = "9h"
        inactive_after = "10d"
        [control]
        other_users = false
        listen = "[::1]:4003"
        [log]
        level = "debug"
    "#;
    let config = parse(text).expect("fine");
    assert_eq!((config.discovery.port, config.exchange.port), (4001, 4002));
    assert_eq!(parse(&config.to_toml()).expect("fine"), config);
    let default = Config::default().settings();
    let unlike = config
        .settings()
        .into_iter()
        .zip(default)
        .filter(|(a, b)| a != b)
        .count();
    assert_eq!(unlike, 26, "every key can be set");
}

#[test]
fn errors_name_the_file_the_line_and_the_key() {
    let texts = [
        "[discovery]\n\nintefaces = []",
        "[exchange]\ninterfaces = []",
        "[stoer]\nlimit = '5%'",
        "[nonsense]",
        "port = 5",
        "store = 5",
        "[store]\nlimit = 5",
        "[store]\nlimit = '0%'",
        "[store]\nlimit = '63 MiB'",
        "[exchange]\nport = 65536",
        "[exchange]\nmax_uploads = 0",
        "[exchange]\nlisten = 'eth0'",
        "[discovery]\nenabled = 'yes'",
        "[discovery]\nstatic_peers = ['a']",
        "[discovery]\nstatic_peers = 'a:1'",
        "[discovery]\ninterfaces = ['']",
        "[origin]\nstall_timeout = '1ms'",
        "[origin]\nca_file = 'ca.pem'",
        "[jobs]\nbackground_jobs = 0",
        "[jobs]\nmax_bytes = 'much'",
        "[jobs]\nended_kept = '59m'",
        "[control]\nlisten = '192.0.2.7:80'",
        "[log]\nlevel = 'loud'",
        "[log]\nlevel = 'info'\nlevel = 'info'",
        "[log\n",
    ];
    let problems: Vec<String> = texts.into_iter().map(problem).collect();
    insta::assert_snapshot!(problems.join("\n"), @r#"
    configuration: b.toml:3: unknown key `discovery.intefaces`; did you mean `discovery.interfaces`?
    configuration: b.toml:2: unknown key `exchange.interfaces`; did you mean `discovery.interfaces`?
    configuration: b.toml:2: unknown key `stoer.limit`; did you mean `store.limit`?
    configuration: b.toml:1: unknown key `nonsense`; did you mean `exchange.port`?
    configuration: b.toml:1: unknown key `port`; did you mean `exchange.port`?
    configuration: b.toml:1: unknown key `store`; did you mean `store.limit`?
    configuration: b.toml:2: store.limit: expected a text in quotes, found 5
    configuration: b.toml:2: store.limit: expected a share of the file system from "1%" to "100%", or a size of at least "64 MiB", found "0%"
    configuration: b.toml:2: store.limit: expected a share of the file system from "1%" to "100%", or a size of at least "64 MiB", found "63 MiB"
    configuration: b.toml:2: exchange.port: expected a number from 0 to 65535, found 65536
    configuration: b.toml:2: exchange.max_uploads: expected a number from 1 to 65535, found 0
    configuration: b.toml:2: exchange.listen: expected an IP address such as "192.0.2.7", or "::" for all, found "eth0"
    configuration: b.toml:2: discovery.enabled: expected true or false, found string
    configuration: b.toml:2: discovery.static_peers: expected "HOST:PORT" such as "192.0.2.7:4001" or "[2001:db8::7]:4001", found "a"
    configuration: b.toml:2: discovery.static_peers: expected a list of texts, found string
    configuration: b.toml:2: discovery.interfaces: expected an interface's name such as "eth0", found ""
    configuration: b.toml:2: origin.stall_timeout: expected a time from 100ms to 1h, found "1ms"
    configuration: b.toml:2: origin.ca_file: expected an absolute path, or "" for none, found "ca.pem"
    configuration: b.toml:2: jobs.background_jobs: expected a number from 1 to 1000, found 0
    configuration: b.toml:2: jobs.max_bytes: expected a size such as "64 MiB" or "1GB", or "unlimited", found "much"
    configuration: b.toml:2: jobs.ended_kept: expected a time from 1h to 3650d, found "59m"
    configuration: b.toml:2: control.listen: expected a loopback address with a port such as "127.0.0.1:4003" or "[::1]:4003", or "" for none, found "192.0.2.7:80"
    configuration: b.toml:2: log.level: expected one of "error", "warn", "info", "debug", "trace", found "loud"
    configuration: b.toml:3: duplicate key
    configuration: b.toml:1: unclosed table, expected `]`
    "#);
}

#[test]
fn only_a_file_that_nobody_named_may_be_absent() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let absent = folder.path().join("absent.toml");
    assert_eq!(
        Config::load(None, Some(&absent)).expect("defaults"),
        Config::default()
    );
    assert_eq!(
        Config::load(None, None).expect("defaults"),
        Config::default()
    );
    assert!(matches!(
        Config::load(Some(&absent), None),
        Err(ConfigError::Read { .. })
    ));

    let present = folder.path().join("present.toml");
    std::fs::write(&present, "[log]\nlevel = 'warn'").expect("writable");
    for (named, default) in [
        (Some(present.as_path()), None),
        (None, Some(present.as_path())),
    ] {
        let config = Config::load(named, default).expect("fine");
        assert_eq!(config.log.level, LogLevel::Warn);
    }
    std::fs::write(&present, [0xff]).expect("writable");
    assert!(matches!(
        Config::load(None, Some(&present)),
        Err(ConfigError::Read { .. })
    ));
}

/// Rows of the form `` | `section.key` | `default` | ``.
#[test]
fn the_documentation_has_each_key_with_its_default_and_no_other() {
    let documentation = include_str!("../../../docs/configuration.md");
    let documented: BTreeMap<&str, &str> = documentation
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` | `"))
        .filter_map(|(key, rest)| Some((key, rest.split_once("` |")?.0)))
        .collect();
    let settings = Config::default().settings();
    let in_code: BTreeMap<&str, &str> = settings.iter().map(|(k, v)| (*k, v.as_str())).collect();
    assert_eq!(documented, in_code);
}

#[test]
fn the_example_in_the_documentation_is_a_configuration() {
    let documentation = include_str!("../../../docs/configuration.md");
    let mut examples = documentation.split("```toml\n").skip(1).peekable();
    assert!(examples.peek().is_some());
    for example in examples {
        let text = example.split("```").next().expect("a fence ends it");
        assert_ne!(parse(text).expect("fine"), Config::default());
    }
}

#[test]
fn a_share_of_a_file_system_never_overflows() {
    assert_eq!(StoreLimit::PercentOfFileSystem(10).bytes_of(1000), 100);
    assert_eq!(
        StoreLimit::PercentOfFileSystem(100).bytes_of(u64::MAX),
        u64::MAX / 100 * 100
    );
    assert_eq!(StoreLimit::Bytes(5).bytes_of(1), 5);
}

proptest! {
    #[test]
    fn sizes_survive_a_round_trip(bytes in any::<u64>(), shift in 0_u32..64) {
        let bytes = bytes >> shift << (shift / 2);
        prop_assert_eq!(parse_bytes(&format_bytes(bytes)), Ok(bytes));
    }

    #[test]
    fn times_survive_a_round_trip(milliseconds in any::<u64>(), shift in 0_u32..64) {
        let duration = Duration::from_millis(milliseconds >> shift);
        prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
    }

    #[test]
    fn a_number_and_a_unit_are_that_many_of_it(number in 0_u64..1 << 20, space in " ?") {
        let text = |unit| format!("{number}{space}{unit}");
        prop_assert_eq!(parse_bytes(&text("MiB")), Ok(number << 20));
        prop_assert_eq!(parse_bytes(&text("mb")), Ok(number * 1_000_000));
        prop_assert_eq!(parse_duration(&text("m")), Ok(Duration::from_secs(number * 60)));
    }

    #[test]
    fn no_text_makes_a_parser_panic(text in "\\PC*|[0-9]{0,25} ?[a-zA-Z%]{0,3}|[\\[\\]a-z:0-9]{0,12}") {
        let _ = (parse_bytes(&text), parse_duration(&text), text.parse::<StoreLimit>());
        let _ = (text.parse::<LogLevel>(), interface(&text), absolute_file(&text));
        if let Ok(peer) = text.parse::<HostPort>() {
            prop_assert_eq!(peer.to_string().parse(), Ok(peer));
        }
        let _ = parse(&text);
        let _ = parse(&format!("[store]\nlimit = {text}"));
    }
}
