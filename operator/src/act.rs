//! How a step is done. Each is one call that changes something, inside the lease, and says which
//! version of which object it means: what changed since the look is refused and looked at again.

use std::{fmt::Debug, future::Future, time::Duration};

use crds::{EtcdCluster, EtcdClusterStatus};
use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{ConfigMap, PersistentVolumeClaim, Pod},
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
    core::NamespaceResourceScope,
};
use record::Action;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{
    Error,
    desired::Wanted,
    etcd::{Changed, Etcd},
    lease::Fence,
    names::{CLUSTER_ID, RECORD, SERVING},
    observe::{Observed, Target},
    plan::{Facts, Step, record},
};

/// Name under which the operator's fields are kept by the API server.
pub const MANAGER: &str = "cairn-operator";
/// How long one change may take, if the lease lasts that long.
const CALL: Duration = Duration::from_secs(10);

/// What came of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is done: look again.
    Done,
    /// It has to wait: nothing changed.
    NotYet,
}

/// Those who do it.
pub struct Hands<'a, E> {
    /// The API server.
    pub client: &'a Client,
    /// The members.
    pub etcd: &'a E,
    /// Whether we still may.
    pub fence: &'a Fence,
}

/// Does a call inside the lease.
async fn within<T>(
    fence: &Fence,
    action: &str,
    call: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let left = fence.remaining()?.min(CALL);
    match tokio::time::timeout(left, call).await {
        Ok(result) => result,
        Err(_) => Err(Error::Timeout(action.to_owned())),
    }
}

fn failed(action: &str) -> impl FnOnce(kube::Error) -> Error + '_ {
    move |source| Error::Api {
        action: action.to_owned(),
        source: Box::new(source),
    }
}

impl<E: Etcd> Hands<'_, E> {
    fn api<K>(&self, seen: &Observed) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &seen.names.namespace)
    }

    /// Writes the status over exactly the version that the plan was made from.
    ///
    /// # Errors
    /// The object changed, or the API server does not answer.
    pub async fn tell(&self, seen: &Observed, status: &EtcdClusterStatus) -> Result<(), Error> {
        let action = "write the status";
        let mut cluster = EtcdCluster::new(&seen.names.cluster, seen.spec.clone());
        cluster.metadata.namespace = Some(seen.names.namespace.clone());
        cluster.metadata.uid = Some(seen.names.uid.clone());
        cluster.metadata.resource_version = Some(seen.resource_version.clone());
        cluster.status = Some(status.clone());
        let api: Api<EtcdCluster> = self.api(seen);
        let parameters = PostParams {
            field_manager: Some(MANAGER.to_owned()),
            ..PostParams::default()
        };
        let write = async {
            let written = api
                .replace_status(&seen.names.cluster, &parameters, &cluster)
                .await;
            written.map_err(failed(action))
        };
        within(self.fence, action, write).await.map(|_| ())
    }

    /// Does one step.
    ///
    /// # Errors
    /// It was refused, not answered, or another operator may be at work. Whether it was done
    /// nevertheless is for the next look to tell.
    pub async fn act(&self, seen: &Observed, step: &Step) -> Result<Outcome, Error> {
        let version = seen.status.version.clone().unwrap_or_default();
        let wanted = Wanted {
            names: &seen.names,
            spec: &seen.spec,
            version: &version,
            settings: &seen.settings,
        };
        let facts = Facts::of(seen);
        match step {
            Step::CreatePeerService => self.create("Service", seen, wanted.peer_service()?).await,
            Step::ApplyPeerService => self.apply("Service", seen, wanted.peer_service()?).await,
            Step::CreateClientService => {
                self.create("Service", seen, wanted.client_service()?).await
            }
            Step::ApplyClientService => self.apply("Service", seen, wanted.client_service()?).await,
            Step::CreateBudget(least) => {
                self.create("PodDisruptionBudget", seen, wanted.budget(*least)?)
                    .await
            }
            Step::ApplyBudget(least) => {
                self.apply("PodDisruptionBudget", seen, wanted.budget(*least)?)
                    .await
            }
            Step::DeleteBudget(target) => self.delete_budget(seen, target).await,
            Step::Hold(member) => {
                let hold = record(&facts, *member, Action::Hold, None);
                let map = wanted.record(*member, &hold, None, None)?;
                self.create("ConfigMap", seen, map).await
            }
            Step::CreateVolume(member) => {
                self.create("PersistentVolumeClaim", seen, wanted.volume(*member)?)
                    .await
            }
            Step::CreateSet(member) => self.create("StatefulSet", seen, wanted.set(*member)?).await,
            Step::WriteRecord {
                member,
                record,
                volume_uid,
                replaces,
            } => {
                let version = replaces
                    .as_ref()
                    .map(|target| target.resource_version.as_str());
                let map = wanted.record(*member, record, volume_uid.as_deref(), version)?;
                match replaces {
                    Some(_) => self.replace_record(seen, &map).await,
                    None => self.create("ConfigMap", seen, map).await,
                }
            }
            other => self.adjust(seen, &wanted, other).await,
        }
    }

    /// Steps that change one field of what exists, and those that etcd does.
    async fn adjust(
        &self,
        seen: &Observed,
        wanted: &Wanted<'_>,
        step: &Step,
    ) -> Result<Outcome, Error> {
        let names = &seen.names;
        match step {
            Step::Announce {
                member,
                record,
                pod,
            } => {
                let change =
                    json!({ "metadata": { "uid": pod, "annotations": { RECORD: record } } });
                self.merge::<Pod>("touch the pod", seen, &names.pod(*member), change)
                    .await
            }
            Step::ServePod { member, pod } => {
                let change = json!({ "metadata": { "uid": pod, "labels": { SERVING: "true" } } });
                self.merge::<Pod>("label the pod", seen, &names.pod(*member), change)
                    .await
            }
            Step::ServeSet { member, set } => {
                let label = json!({ "metadata": { "labels": { SERVING: "true" } } });
                let change = of(set, json!({ "spec": { "template": label } }));
                let name = names.member(*member);
                self.merge::<StatefulSet>("label the pods to come", seen, &name, change)
                    .await
            }
            Step::NoteCluster {
                member,
                cluster_id,
                volume,
            } => {
                let note = json!({ "metadata": { "annotations": { CLUSTER_ID: cluster_id } } });
                self.claim(
                    "note the cluster's ID on the claim",
                    seen,
                    *member,
                    of(volume, note),
                )
                .await
            }
            Step::GrowVolume { member, volume } => {
                let size = json!({ "storage": seen.spec.storage.size });
                let change = json!({ "spec": { "resources": { "requests": size } } });
                self.claim("let the claim grow", seen, *member, of(volume, change))
                    .await
            }
            Step::OwnVolume {
                member,
                owned,
                volume,
            } => {
                let owners = match owned {
                    true => json!([wanted.owner()]),
                    false => json!([]),
                };
                let change = json!({ "metadata": { "ownerReferences": owners } });
                self.claim(
                    "change the claim's owner",
                    seen,
                    *member,
                    of(volume, change),
                )
                .await
            }
            Step::AddLearner(member) => {
                let addresses = seen.addresses();
                let url = names.peer_url(*member);
                let add = self.etcd.add_learner(&addresses, &url);
                self.change("add the member as a learner", add).await
            }
            Step::Promote { id, .. } => {
                let addresses = seen.addresses();
                let promote = self.etcd.promote(&addresses, *id);
                self.change("give the member its vote", promote).await
            }
            _ => Ok(Outcome::NotYet),
        }
    }

    /// Makes an object that is not there. One that is there and ours was made by a try whose
    /// answer was lost; one that is not ours is left alone.
    async fn create<K>(
        &self,
        kind: &'static str,
        seen: &Observed,
        object: K,
    ) -> Result<Outcome, Error>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Serialize
            + DeserializeOwned
            + Debug,
    {
        let action = format!("create {kind} {}", object.name_any());
        let api: Api<K> = self.api(seen);
        let parameters = PostParams {
            field_manager: Some(MANAGER.to_owned()),
            ..PostParams::default()
        };
        let create = async {
            match api.create(&parameters, &object).await {
                Ok(_) => Ok(true),
                Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(false),
                Err(error) => Err(failed(&action)(error)),
            }
        };
        if within(self.fence, &action, create).await? {
            return Ok(Outcome::Done);
        }
        self.whose(kind, &api, seen, &object.name_any()).await
    }

    async fn whose<K>(
        &self,
        kind: &'static str,
        api: &Api<K>,
        seen: &Observed,
        name: &str,
    ) -> Result<Outcome, Error>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        let action = format!("read {kind} {name}");
        let read = async { api.get_opt(name).await.map_err(failed(&action)) };
        let Some(there) = within(self.fence, &action, read).await? else {
            return Ok(Outcome::Done);
        };
        let labels = there.labels();
        let own = labels.get(crate::names::CLUSTER_UID) == Some(&seen.names.uid)
            && labels.get(crate::names::CLUSTER) == Some(&seen.names.cluster);
        match own {
            true => Ok(Outcome::Done),
            false => Err(Error::NameConflict {
                kind,
                name: name.to_owned(),
            }),
        }
    }

    /// Brings an object that the look found to be ours back to what it should be.
    async fn apply<K>(
        &self,
        kind: &'static str,
        seen: &Observed,
        object: K,
    ) -> Result<Outcome, Error>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Serialize
            + DeserializeOwned
            + Debug,
    {
        let name = object.name_any();
        let action = format!("apply {kind} {name}");
        let api: Api<K> = self.api(seen);
        let parameters = PatchParams::apply(MANAGER).force();
        let apply = async {
            let applied = api.patch(&name, &parameters, &Patch::Apply(&object)).await;
            applied.map_err(failed(&action))
        };
        within(self.fence, &action, apply)
            .await
            .map(|_| Outcome::Done)
    }

    async fn replace_record(&self, seen: &Observed, map: &ConfigMap) -> Result<Outcome, Error> {
        let action = "write the bootstrap record";
        let api: Api<ConfigMap> = self.api(seen);
        let parameters = PostParams {
            field_manager: Some(MANAGER.to_owned()),
            ..PostParams::default()
        };
        let name = map.name_any();
        let write = async {
            let written = api.replace(&name, &parameters, map).await;
            written.map_err(failed(action))
        };
        within(self.fence, action, write)
            .await
            .map(|_| Outcome::Done)
    }

    async fn delete_budget(&self, seen: &Observed, target: &Target) -> Result<Outcome, Error> {
        let action = "delete the PodDisruptionBudget";
        let api: Api<PodDisruptionBudget> = self.api(seen);
        let parameters = DeleteParams::default().preconditions(Preconditions {
            uid: Some(target.uid.clone()),
            resource_version: Some(target.resource_version.clone()),
        });
        let name = seen.names.budget();
        let delete = async {
            match api.delete(&name, &parameters).await {
                Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
                answer => answer.map(|_| ()).map_err(failed(action)),
            }
        };
        within(self.fence, action, delete)
            .await
            .map(|()| Outcome::Done)
    }

    async fn claim(
        &self,
        action: &str,
        seen: &Observed,
        member: i64,
        change: Value,
    ) -> Result<Outcome, Error> {
        let name = seen.names.member(member);
        self.merge::<PersistentVolumeClaim>(action, seen, &name, change)
            .await
    }

    async fn merge<K>(
        &self,
        action: &str,
        seen: &Observed,
        name: &str,
        change: Value,
    ) -> Result<Outcome, Error>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + Debug,
    {
        let api: Api<K> = self.api(seen);
        let parameters = PatchParams {
            field_manager: Some(MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let merge = async {
            let merged = api.patch(name, &parameters, &Patch::Merge(&change)).await;
            merged.map_err(failed(action))
        };
        within(self.fence, action, merge)
            .await
            .map(|_| Outcome::Done)
    }

    async fn change(
        &self,
        action: &str,
        call: impl Future<Output = Result<Changed, String>>,
    ) -> Result<Outcome, Error> {
        let call = async {
            call.await.map_err(|answer| Error::Etcd {
                action: action.to_owned(),
                answer,
            })
        };
        Ok(match within(self.fence, action, call).await? {
            Changed::Done => Outcome::Done,
            Changed::NotYet => Outcome::NotYet,
        })
    }
}

/// A change that holds for one version of one object.
fn of(target: &Target, mut change: Value) -> Value {
    let metadata = &mut change["metadata"];
    if metadata.is_null() {
        *metadata = json!({});
    }
    metadata["uid"] = json!(target.uid);
    metadata["resourceVersion"] = json!(target.resource_version);
    change
}
