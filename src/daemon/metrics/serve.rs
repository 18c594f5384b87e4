//! HTTP on a loopback address or a UNIX socket.

use std::{
    convert::Infallible, fs, io, net::TcpListener as StdListener, sync::Arc, time::Duration,
};

use http_body_util::Full;
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::CONTENT_TYPE,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    task::JoinSet,
};
use tracing::{debug, info, warn};

use super::text;
use crate::{
    config::Metrics,
    daemon::{
        door::{self, Door, Place},
        status::Status,
    },
    task::Task,
};

/// Requests at once.
const REQUESTS: usize = 16;
/// How long a request may take, with its answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// After an error of the listener.
const PAUSE: Duration = Duration::from_secs(1);

/// Answers until it is dropped.
#[derive(Debug)]
pub(crate) struct MetricsServer {
    _task: Task,
    listen: Metrics,
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        if let Metrics::Socket(path) = &self.listen {
            let _ = fs::remove_file(path);
        }
    }
}

/// Serves what `status` gives, where `listen` says so.
pub(crate) fn serve(
    listen: Option<&Metrics>,
    status: impl Fn() -> Status + Send + Sync + 'static,
) -> io::Result<Option<MetricsServer>> {
    let Some(listen) = listen else { return Ok(None) };
    let status = Arc::new(status);
    let requests = Requests { door: Door::new(REQUESTS), under_way: JoinSet::new(), status };
    let task = match listen {
        Metrics::Loopback(address) => {
            let named = |error| name(error, &address.to_string());
            let listener = StdListener::bind(address).map_err(named)?;
            listener.set_nonblocking(true)?;
            let listener = TcpListener::from_std(listener)?;
            Task::spawn("metrics", requests.over_tcp(listener))
        }
        Metrics::Socket(path) => {
            let named = |error| name(error, &path.display().to_string());
            let listener = door::listen(path).map_err(named)?;
            Task::spawn("metrics", requests.over_unix(listener))
        }
    };
    info!(?listen, "serving metrics");
    Ok(Some(MetricsServer { _task: task, listen: listen.clone() }))
}

fn name(error: io::Error, listen: &str) -> io::Error {
    io::Error::new(error.kind(), format!("metrics.listen = {listen}: {error}"))
}

/// The requests that are being answered; they end with this.
struct Requests {
    door: Door,
    under_way: JoinSet<()>,
    status: Arc<dyn Fn() -> Status + Send + Sync>,
}

impl Requests {
    async fn over_tcp(mut self, listener: TcpListener) -> Infallible {
        loop {
            let stream = listener.accept().await.map(|(stream, _)| stream);
            self.begin(stream).await;
        }
    }

    async fn over_unix(mut self, listener: UnixListener) -> Infallible {
        loop {
            let stream = listener.accept().await.map(|(stream, _)| stream);
            self.begin(stream).await;
        }
    }

    async fn begin<S>(&mut self, stream: io::Result<S>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let stream = match stream {
            Ok(stream) => stream,
            Err(error) => {
                warn!(%error, "metrics");
                return tokio::time::sleep(PAUSE).await;
            }
        };
        let place = self.door.enter().await;
        self.under_way.spawn(serve_one(stream, place, self.status.clone()));
        while self.under_way.try_join_next().is_some() {}
    }
}

async fn serve_one<S>(stream: S, place: Place, status: Arc<dyn Fn() -> Status + Send + Sync>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| {
        let status = status.clone();
        async move { Ok::<_, Infallible>(answer(&request, &*status)) }
    });
    let mut http = http1::Builder::new();
    let http = http.timer(TokioTimer::new()).header_read_timeout(TIMEOUT).keep_alive(false);
    tokio::select! {
        served = http.serve_connection(TokioIo::new(stream), service) => {
            if let Err(error) = served {
                debug!(%error, "metrics request failed");
            }
        }
        () = over(place) => debug!("metrics request given up"),
    }
}

/// Returns when a request has taken too long, or another one needs its place.
async fn over(mut place: Place) {
    let _ = tokio::time::timeout(TIMEOUT, place.lost()).await;
}

fn answer(request: &Request<Incoming>, status: &dyn Fn() -> Status) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    if request.uri().path() != "/metrics" {
        *response.status_mut() = StatusCode::NOT_FOUND;
        *response.body_mut() = Full::from("the figures are at /metrics\n");
        return response;
    }
    match text(&status()) {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            response
                .headers_mut()
                .insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
            *response.body_mut() = Full::from(text);
        }
        Err(error) => {
            warn!(%error, "metrics");
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        }
    }
    response
}
