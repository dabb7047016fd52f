//! Log lines as etcd writes them: JSON with level, ts, caller and msg, on standard error.

use std::{fmt, fs::OpenOptions, io, sync::Mutex};

use anyhow::Context;
use config::Config;
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    Layer,
    filter::LevelFilter,
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer, writer::BoxMakeWriter},
    layer::SubscriberExt,
    registry::LookupSpan,
    util::SubscriberInitExt,
};

/// Sends log lines where the configuration says.
pub(crate) fn init(config: &Config) -> anyhow::Result<()> {
    let level = match config.log_level.as_str() {
        "debug" => LevelFilter::DEBUG,
        "info" => LevelFilter::INFO,
        "warn" => LevelFilter::WARN,
        // etcd's panic and fatal levels are errors here.
        _ => LevelFilter::ERROR,
    };
    let mut layers = Vec::new();
    for output in &config.log_outputs {
        let layer = tracing_subscriber::fmt::layer().with_writer(writer(output)?);
        layers.push(match config.log_json {
            true => layer.event_format(EtcdJson).boxed(),
            false => layer.with_ansi(false).boxed(),
        });
    }
    tracing_subscriber::registry()
        .with(layers.with_filter(level))
        .init();
    Ok(())
}

fn writer(output: &str) -> anyhow::Result<BoxMakeWriter> {
    Ok(match output {
        "default" | "stderr" => BoxMakeWriter::new(io::stderr),
        "stdout" => BoxMakeWriter::new(io::stdout),
        path => {
            let file = OpenOptions::new().create(true).append(true).open(path);
            let file = file.with_context(|| format!("could not open the log output {path}"))?;
            BoxMakeWriter::new(Mutex::new(file))
        }
    })
}

/// The form of a line.
struct EtcdJson;

impl<S, N> FormatEvent<S, N> for EtcdJson
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        let level = match *metadata.level() {
            Level::ERROR => "error",
            Level::WARN => "warn",
            Level::INFO => "info",
            Level::DEBUG | Level::TRACE => "debug",
        };
        let mut fields = Fields::default();
        event.record(&mut fields);
        let file = metadata.file().unwrap_or_default();
        let file = file.rsplit_once("src/").map_or(file, |(_, file)| file);
        let caller = format!("{file}:{}", metadata.line().unwrap_or_default());
        write!(
            writer,
            "{{\"level\":\"{level}\",\"ts\":\"{}\",\"caller\":{},\"msg\":{}{}}}",
            jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ"),
            quoted(&caller),
            quoted(&fields.message),
            fields.rest,
        )?;
        writeln!(writer)
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    rest: String,
}

impl Fields {
    fn add(&mut self, field: &Field, value: &str) {
        self.rest += &format!(",{}:{value}", quoted(field.name()));
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let value = format!("{value:?}");
        match field.name() {
            "message" => self.message = value,
            _ => self.add(field, &quoted(&value)),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, &quoted(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, &value.to_string());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, &value.to_string());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, &value.to_string());
    }
}

/// A JSON string.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
