//! What can be typed. Names here are a contract with scripts: more may be added.

mod job;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use branchline_agent::api::FailureKind;
use branchline_hashing::{Blake3Digest, Sha256Digest};
use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};
use url::Url;

use crate::output;

pub(crate) use job::{
    JobAddArgs, JobArgs, JobCommand, JobCreateArgs, JobFileArgs, JobListArgs, JobSetArgs,
    JobSettingsArgs, JobWaitArgs, Proxy,
};

/// Downloads a file once for the whole branch: what a neighbour has comes from the neighbour, the
/// rest from the origin, and every byte is verified.
#[derive(Debug, Parser)]
#[command(name = "branchline", version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Where the agent's state lies [default: /var/lib/branchline for root, else
    /// $XDG_STATE_HOME/branchline]
    #[arg(
        long,
        global = true,
        env = "BRANCHLINE_STATE_DIR",
        hide_env_values = true,
        value_name = "DIR"
    )]
    pub(crate) state_dir: Option<PathBuf>,
    /// The configuration [default: /etc/branchline/branchline.toml for root, else
    /// $XDG_CONFIG_HOME/branchline/branchline.toml, if it exists]
    #[arg(
        long,
        global = true,
        env = "BRANCHLINE_CONFIG",
        hide_env_values = true,
        value_name = "FILE"
    )]
    pub(crate) config: Option<PathBuf>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the agent in the foreground; prints `ready` once it serves
    Agent,
    /// Download a file
    Get(GetArgs),
    /// Write PATH.branchline, the manifest, beside each file (directories recursively)
    Publish(PublishArgs),
    /// Check a file against its manifest
    Verify(VerifyArgs),
    /// What the running agent does
    Status(ShowArgs),
    /// The agents it sees
    Peers(ShowArgs),
    /// What its store holds
    #[command(subcommand)]
    Cache(CacheCommand),
    /// Downloads that the agent carries out in the background, over restarts
    #[command(subcommand)]
    Job(Box<JobCommand>),
    /// The configuration
    #[command(subcommand)]
    Config(ConfigCommand),
}

/// `cache`
#[derive(Debug, Subcommand)]
pub(crate) enum CacheCommand {
    /// List the contents it holds, wholly or in part
    List(ShowArgs),
}

/// `config`
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print the configuration that is in force, or what is wrong with it
    Check,
}

/// `get`
#[derive(Debug, Args)]
pub(crate) struct GetArgs {
    /// Where the origin has the file (http or https)
    #[arg(value_parser = url)]
    pub(crate) url: Url,
    /// Where to save it: a file, or a directory to save it in under the URL's last name [default:
    /// the working directory]
    #[arg(short, long, value_name = "PATH")]
    pub(crate) output: Option<PathBuf>,
    /// The file's SHA-256, if known: with it, peers are believed without a manifest
    #[arg(long, value_name = "HEX", conflicts_with = "blake3")]
    pub(crate) sha256: Option<Sha256Digest>,
    /// The file's BLAKE3, if known: with it, peers are believed without a manifest
    #[arg(long, value_name = "HEX")]
    pub(crate) blake3: Option<Blake3Digest>,
    /// Send this header to the origin; may be repeated
    #[arg(long = "header", value_name = "K: V", value_parser = header)]
    pub(crate) headers: Vec<(String, String)>,
    /// Do not look for a manifest beside the file
    #[arg(long)]
    pub(crate) without_manifest: bool,
    /// When interrupted, end the job and remove what it has fetched; otherwise the agent goes on with it
    #[arg(long)]
    pub(crate) cancel_on_interrupt: bool,
    /// End with one line of JSON on stdout
    #[arg(long)]
    pub(crate) json: bool,
}

/// `publish`
#[derive(Debug, Args)]
pub(crate) struct PublishArgs {
    /// Files and directories
    #[arg(required = true, value_name = "PATH")]
    pub(crate) paths: Vec<PathBuf>,
    /// End with one line of JSON on stdout
    #[arg(long)]
    pub(crate) json: bool,
}

/// `verify`
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// The file
    pub(crate) file: PathBuf,
    /// Its manifest [default: FILE.branchline]
    pub(crate) manifest: Option<PathBuf>,
    /// End with one line of JSON on stdout
    #[arg(long)]
    pub(crate) json: bool,
}

/// Commands that show something.
#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// A command line that was answered right away: with help, the version, or a complaint.
#[derive(Debug)]
pub(crate) struct Answered {
    failed: bool,
}

impl Answered {
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self.failed {
            true => ExitCode::from(FailureKind::Usage.exit_code()),
            false => ExitCode::SUCCESS,
        }
    }
}

/// Reads the command line; answers it when there is nothing to run.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, Answered> {
    Cli::try_parse_from(args).map_err(|error| {
        let failed = error.use_stderr();
        if failed && error.kind() != ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
            output::complain(&one_line(&error));
        } else {
            // Help that nobody can read is no reason to fail.
            let _ = error.print();
        }
        Answered { failed }
    })
}

/// clap's complaint without its usage, which is long; what to type for that is said instead.
fn one_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let lines = text.lines().map(str::trim);
    let said =
        lines.take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"));
    let said: Vec<&str> = said.filter(|line| !line.is_empty()).collect();
    let said = said.join(" ").replace(" tip: ", "; ");
    format!(
        "{}; see `branchline --help`",
        said.strip_prefix("error: ").unwrap_or(&said)
    )
}

fn url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|error| error.to_string())?;
    match url.scheme() {
        "http" | "https" => Ok(url),
        other => Err(format!(
            "`{other}` is no scheme that Branchline fetches; http and https are"
        )),
    }
}

/// RFC 9110, sections 5.1 and 5.5: a token, and a value without line breaks.
fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("a header is NAME: VALUE")?;
    let (name, value) = (name.trim(), value.trim());
    let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    if name.is_empty() || !name.chars().all(token) {
        return Err("a header's name is letters, digits and hyphens".into());
    }
    if value.chars().any(|c| c.is_control() && c != '\t') {
        return Err("a header's value has no control characters".into());
    }
    Ok((name.into(), value.into()))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn complaint(args: &str) -> String {
        let args = ["branchline"]
            .into_iter()
            .chain(args.split('|').filter(|a| !a.is_empty()));
        Cli::try_parse_from(args).map_or_else(|error| one_line(&error), |cli| format!("{cli:?}"))
    }

    #[test]
    fn the_grammar_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn complaints_are_one_line() {
        let digest = "12";
        let lines = [
            "frobnicate".into(),
            "get".into(),
            "get|ftp://a/b".into(),
            "get|a/b".into(),
            "publish".into(),
            "get|http://a/b|--jsn".into(),
            "get|http://a/b|--header|nothing".into(),
            "get|http://a/b|--header|a b: c".into(),
            "get|http://a/b|--header|a: b\r\nc: d".into(),
            format!("get|http://a/b|--sha256|{digest}"),
            "verify".into(),
        ];
        let complaints: Vec<String> = lines.iter().map(|line: &String| complaint(line)).collect();
        assert!(
            complaints
                .iter()
                .all(|complaint| complaint.lines().count() == 1)
        );
        insta::assert_snapshot!(complaints.join("\n"), @r"
        unrecognized subcommand 'frobnicate'; see `branchline --help`
        the following required arguments were not provided: <URL>; see `branchline --help`
        invalid value 'ftp://a/b' for '<URL>': `ftp` is no scheme that Branchline fetches; http and https are; see `branchline --help`
        invalid value 'a/b' for '<URL>': relative URL without a base; see `branchline --help`
        the following required arguments were not provided: <PATH>...; see `branchline --help`
        unexpected argument '--jsn' found; a similar argument exists: '--json'; see `branchline --help`
        invalid value 'nothing' for '--header <K: V>': a header is NAME: VALUE; see `branchline --help`
        invalid value 'a b: c' for '--header <K: V>': a header's name is letters, digits and hyphens; see `branchline --help`
        invalid value 'a: b c: d' for '--header <K: V>': a header's value has no control characters; see `branchline --help`
        invalid value '12' for '--sha256 <HEX>': expected 64 hexadecimal digits, found 2 characters that are not such a value; see `branchline --help`
        the following required arguments were not provided: <FILE>; see `branchline --help`
        ");
    }

    #[test]
    fn global_options_may_stand_before_and_after_the_command() {
        for line in [
            "--state-dir|/s|status|--json",
            "status|--state-dir|/s|--json",
        ] {
            let args = ["branchline"].into_iter().chain(line.split('|'));
            let cli = Cli::try_parse_from(args).expect("fine");
            assert_eq!(cli.global.state_dir, Some("/s".into()));
            assert!(matches!(
                cli.command,
                Command::Status(ShowArgs { json: true })
            ));
        }
    }

    #[test]
    fn get_takes_what_the_documentation_says() {
        let hex = "ab".repeat(32);
        let line = format!(
            "get|https://a/b|-o|/c|--sha256|{hex}|--header|X: y: z|--header|E:|--without-manifest"
        );
        let args = ["branchline"].into_iter().chain(line.split('|'));
        let Command::Get(get) = Cli::try_parse_from(args).expect("fine").command else {
            panic!("another command")
        };
        assert_eq!(get.output, Some("/c".into()));
        assert_eq!(get.sha256.map(|digest| digest.to_string()), Some(hex));
        let headers = [("X".into(), "y: z".into()), ("E".into(), String::new())];
        assert_eq!(get.headers, headers);
        assert!(get.without_manifest && !get.json && get.blake3.is_none());
    }

    #[test]
    fn the_help_says_what_the_commands_are() {
        insta::assert_snapshot!(Cli::command().term_width(100).render_help(), @r"
        Downloads a file once for the whole branch: what a neighbour has comes from the neighbour, the rest
        from the origin, and every byte is verified

        Usage: branchline [OPTIONS] <COMMAND>

        Commands:
          agent    Run the agent in the foreground; prints `ready` once it serves
          get      Download a file
          publish  Write PATH.branchline, the manifest, beside each file (directories recursively)
          verify   Check a file against its manifest
          status   What the running agent does
          peers    The agents it sees
          cache    What its store holds
          job      Downloads that the agent carries out in the background, over restarts
          config   The configuration
          help     Print this message or the help of the given subcommand(s)

        Options:
              --state-dir <DIR>  Where the agent's state lies [default: /var/lib/branchline for root, else
                                 $XDG_STATE_HOME/branchline] [env: BRANCHLINE_STATE_DIR]
              --config <FILE>    The configuration [default: /etc/branchline/branchline.toml for root, else
                                 $XDG_CONFIG_HOME/branchline/branchline.toml, if it exists] [env:
                                 BRANCHLINE_CONFIG]
          -h, --help             Print help
          -V, --version          Print version
        ");
    }
}
