//! The Cluster service.

use proto::etcdserverpb::{
    MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse,
    MemberPromoteRequest, MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse,
    MemberUpdateRequest, MemberUpdateResponse, cluster_server::Cluster,
};
use state::Error;
use tonic::{Request, Response, Status};
use url::Url;

use crate::{Backend, caller::Caller, gate, status};

pub(crate) struct ClusterService<B>(pub B);

#[tonic::async_trait]
impl<B: Backend> Cluster for ClusterService<B> {
    async fn member_add(
        &self,
        request: Request<MemberAddRequest>,
    ) -> Result<Response<MemberAddResponse>, Status> {
        gate::pass(&self.0, request.metadata(), false)?;
        let caller = Caller::of(&self.0, &request);
        let mut request = request.into_inner();
        request.peer_ur_ls = peer_urls(&request.peer_ur_ls).map_err(status::of)?;
        self.0.require_root(&caller).await.map_err(status::of)?;
        let (member, members) = self.0.member_add(request).await.map_err(status::of)?;
        Ok(Response::new(MemberAddResponse {
            header: status::header(&self.0),
            member: Some(member),
            members,
        }))
    }

    async fn member_remove(
        &self,
        request: Request<MemberRemoveRequest>,
    ) -> Result<Response<MemberRemoveResponse>, Status> {
        gate::pass(&self.0, request.metadata(), false)?;
        let caller = Caller::of(&self.0, &request);
        self.0.require_root(&caller).await.map_err(status::of)?;
        let members = self.0.member_remove(request.into_inner().id).await;
        Ok(Response::new(MemberRemoveResponse {
            header: status::header(&self.0),
            members: members.map_err(status::of)?,
        }))
    }

    async fn member_update(
        &self,
        request: Request<MemberUpdateRequest>,
    ) -> Result<Response<MemberUpdateResponse>, Status> {
        gate::pass(&self.0, request.metadata(), false)?;
        let caller = Caller::of(&self.0, &request);
        self.0.require_root(&caller).await.map_err(status::of)?;
        let members = self.0.member_update(request.into_inner()).await;
        Ok(Response::new(MemberUpdateResponse {
            header: status::header(&self.0),
            members: members.map_err(status::of)?,
        }))
    }

    async fn member_list(
        &self,
        request: Request<MemberListRequest>,
    ) -> Result<Response<MemberListResponse>, Status> {
        gate::pass(&self.0, request.metadata(), false)?;
        let caller = Caller::of(&self.0, &request);
        let linearizable = request.into_inner().linearizable;
        let members = self.0.member_list(&caller, linearizable).await;
        Ok(Response::new(MemberListResponse {
            header: status::header(&self.0),
            members: members.map_err(status::of)?,
        }))
    }

    async fn member_promote(
        &self,
        request: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        gate::pass(&self.0, request.metadata(), false)?;
        let caller = Caller::of(&self.0, &request);
        self.0.require_root(&caller).await.map_err(status::of)?;
        let members = self
            .0
            .member_promote(&caller, request.into_inner().id)
            .await;
        Ok(Response::new(MemberPromoteResponse {
            header: status::header(&self.0),
            members: members.map_err(status::of)?,
        }))
    }
}

/// Peer URLs as etcd takes them: scheme, host and port and nothing behind; sorted.
fn peer_urls(urls: &[String]) -> Result<Vec<String>, Error> {
    if urls.is_empty() {
        return Err(Error::MemberBadUrls);
    }
    let mut sorted = Vec::with_capacity(urls.len());
    for text in urls {
        let text = text.trim();
        let url = Url::parse(text).map_err(|_| Error::MemberBadUrls)?;
        let known = matches!(url.scheme(), "http" | "https" | "unix" | "unixs");
        let bare = matches!(url.path(), "" | "/") && url.query().is_none();
        // The default port is dropped by the parser, so the text itself is asked for one.
        let authority = text.split("://").nth(1).unwrap_or_default();
        let host = authority.trim_end_matches('/');
        let port = host.rsplit_once(':').map(|(_, port)| port);
        let has_port = port.is_some_and(|port| port.parse::<u16>().is_ok());
        let unix = url.scheme().starts_with("unix");
        if !known || text.ends_with('/') || !(unix || (bare && has_port)) {
            return Err(Error::MemberBadUrls);
        }
        sorted.push(text.to_owned());
    }
    sorted.sort();
    Ok(sorted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer_urls_are_checked_and_sorted() {
        let check = |urls: &[&str], expected: Option<&[&str]>| {
            let urls: Vec<String> = urls.iter().map(|&url| url.to_owned()).collect();
            let found = peer_urls(&urls).ok();
            let expected = expected.map(|urls| urls.iter().map(|&url| url.to_owned()).collect());
            assert_eq!(found, expected, "{urls:?}");
        };
        check(
            &["http://b:2380", "http://a:80"],
            Some(&["http://a:80", "http://b:2380"]),
        );
        check(&["https://[::1]:2380"], Some(&["https://[::1]:2380"]));
        for bad in [
            "",
            "a:1",
            "http://a",
            "ftp://a:1",
            "http://a:1/x",
            "http://a:1/",
        ] {
            check(&[bad], None);
        }
        check(&[], None);
    }
}
