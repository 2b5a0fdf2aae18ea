package event

import (
	"encoding/json"
	"time"
)

// A Payload is what an event says. Its fields marshal to the protobuf JSON of
// the message that EventType names.
type Payload interface {
	EventType() string // full name of the protobuf message
	EventTopic() string
	EventSubject() string // what the event is about: an id, a name or a digest
}

// New makes an event of p. The ID is left to whoever publishes.
func New(ns string, at time.Time, p Payload) Event {
	b, err := json.Marshal(p)
	if err != nil {
		panic("event: a payload that does not marshal: " + err.Error()) // only strings, numbers and times
	}
	return Event{
		Namespace: ns,
		Topic:     p.EventTopic(),
		Time:      at.UTC(),
		Subject:   p.EventSubject(),
		Type:      p.EventType(),
		JSON:      b,
	}
}

// The payloads that daemons tell. Their names are those of containerd's
// messages.
type (
	ContentCreate struct {
		Digest string `json:"digest"`
		Size   int64  `json:"size"`
	}
	ContentDelete struct {
		Digest string `json:"digest"`
	}

	SnapshotPrepare struct {
		Key         string `json:"key"`
		Parent      string `json:"parent,omitempty"`
		Snapshotter string `json:"snapshotter"`
	}
	SnapshotCommit struct {
		Key         string `json:"key"`
		Name        string `json:"name"`
		Snapshotter string `json:"snapshotter"`
	}
	SnapshotRemove struct {
		Key         string `json:"key"`
		Snapshotter string `json:"snapshotter"`
	}

	ImageCreate struct {
		Name   string            `json:"name"`
		Labels map[string]string `json:"labels,omitempty"`
	}
	ImageUpdate struct {
		Name   string            `json:"name"`
		Labels map[string]string `json:"labels,omitempty"`
	}
	ImageDelete struct {
		Name string `json:"name"`
	}

	NamespaceCreate struct {
		Name   string            `json:"name"`
		Labels map[string]string `json:"labels,omitempty"`
	}
	NamespaceUpdate struct {
		Name   string            `json:"name"`
		Labels map[string]string `json:"labels,omitempty"`
	}
	NamespaceDelete struct {
		Name string `json:"name"`
	}

	ContainerCreate struct {
		ID      string           `json:"id"`
		Image   string           `json:"image,omitempty"`
		Runtime ContainerRuntime `json:"runtime"`
	}
	ContainerRuntime struct {
		Name string `json:"name"`
	}
	ContainerUpdate struct {
		ID          string            `json:"id"`
		Image       string            `json:"image,omitempty"`
		Labels      map[string]string `json:"labels,omitempty"`
		SnapshotKey string            `json:"snapshot_key,omitempty"`
	}
	ContainerDelete struct {
		ID string `json:"id"`
	}

	// TaskExit and TaskDelete are told by taskd only for a shim that died
	// without telling.
	TaskExit struct {
		ContainerID string    `json:"container_id"`
		ID          string    `json:"id"`
		Pid         uint32    `json:"pid"`
		ExitStatus  uint32    `json:"exit_status"`
		ExitedAt    time.Time `json:"exited_at"`
	}
	TaskDelete struct {
		ContainerID string    `json:"container_id"`
		Pid         uint32    `json:"pid"`
		ExitStatus  uint32    `json:"exit_status"`
		ExitedAt    time.Time `json:"exited_at"`
		ID          string    `json:"id,omitempty"`
	}
)

// The EventType methods implement Payload.
func (ContentCreate) EventType() string   { return "containerd.events.ContentCreate" }
func (ContentDelete) EventType() string   { return "containerd.events.ContentDelete" }
func (SnapshotPrepare) EventType() string { return "containerd.events.SnapshotPrepare" }
func (SnapshotCommit) EventType() string  { return "containerd.events.SnapshotCommit" }
func (SnapshotRemove) EventType() string  { return "containerd.events.SnapshotRemove" }
func (ImageCreate) EventType() string     { return "containerd.services.images.v1.ImageCreate" }
func (ImageUpdate) EventType() string     { return "containerd.services.images.v1.ImageUpdate" }
func (ImageDelete) EventType() string     { return "containerd.services.images.v1.ImageDelete" }
func (NamespaceCreate) EventType() string { return "containerd.events.NamespaceCreate" }
func (NamespaceUpdate) EventType() string { return "containerd.events.NamespaceUpdate" }
func (NamespaceDelete) EventType() string { return "containerd.events.NamespaceDelete" }
func (ContainerCreate) EventType() string { return "containerd.events.ContainerCreate" }
func (ContainerUpdate) EventType() string { return "containerd.events.ContainerUpdate" }
func (ContainerDelete) EventType() string { return "containerd.events.ContainerDelete" }
func (TaskExit) EventType() string        { return "containerd.events.TaskExit" }
func (TaskDelete) EventType() string      { return "containerd.events.TaskDelete" }

// The EventTopic methods implement Payload.
func (ContentCreate) EventTopic() string   { return "/content/create" }
func (ContentDelete) EventTopic() string   { return "/content/delete" }
func (SnapshotPrepare) EventTopic() string { return "/snapshot/prepare" }
func (SnapshotCommit) EventTopic() string  { return "/snapshot/commit" }
func (SnapshotRemove) EventTopic() string  { return "/snapshot/remove" }
func (ImageCreate) EventTopic() string     { return "/images/create" }
func (ImageUpdate) EventTopic() string     { return "/images/update" }
func (ImageDelete) EventTopic() string     { return "/images/delete" }
func (NamespaceCreate) EventTopic() string { return "/namespaces/create" }
func (NamespaceUpdate) EventTopic() string { return "/namespaces/update" }
func (NamespaceDelete) EventTopic() string { return "/namespaces/delete" }
func (ContainerCreate) EventTopic() string { return "/containers/create" }
func (ContainerUpdate) EventTopic() string { return "/containers/update" }
func (ContainerDelete) EventTopic() string { return "/containers/delete" }
func (TaskExit) EventTopic() string        { return "/tasks/exit" }
func (TaskDelete) EventTopic() string      { return "/tasks/delete" }

// The EventSubject methods implement Payload.
func (p ContentCreate) EventSubject() string   { return p.Digest }
func (p ContentDelete) EventSubject() string   { return p.Digest }
func (p SnapshotPrepare) EventSubject() string { return p.Key }
func (p SnapshotCommit) EventSubject() string  { return p.Name }
func (p SnapshotRemove) EventSubject() string  { return p.Key }
func (p ImageCreate) EventSubject() string     { return p.Name }
func (p ImageUpdate) EventSubject() string     { return p.Name }
func (p ImageDelete) EventSubject() string     { return p.Name }
func (p NamespaceCreate) EventSubject() string { return p.Name }
func (p NamespaceUpdate) EventSubject() string { return p.Name }
func (p NamespaceDelete) EventSubject() string { return p.Name }
func (p ContainerCreate) EventSubject() string { return p.ID }
func (p ContainerUpdate) EventSubject() string { return p.ID }
func (p ContainerDelete) EventSubject() string { return p.ID }
func (p TaskExit) EventSubject() string        { return p.ContainerID }
func (p TaskDelete) EventSubject() string      { return p.ContainerID }
