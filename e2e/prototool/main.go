// Command prototool prints what etcd's own generated code says of its messages and services, a line
// a field or method, so that a test can compare our .proto files with it.
package main

import (
	"fmt"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	_ "go.etcd.io/etcd/api/v3/authpb"
	_ "go.etcd.io/etcd/api/v3/etcdserverpb"
	_ "go.etcd.io/etcd/api/v3/membershippb"
	_ "go.etcd.io/etcd/api/v3/mvccpb"
	_ "go.etcd.io/etcd/server/v3/etcdserver/api/snap/snappb"
	_ "go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	_ "go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	_ "go.etcd.io/etcd/server/v3/lease/leasepb"
	_ "go.etcd.io/etcd/server/v3/storage/wal/walpb"
	_ "go.etcd.io/raft/v3/raftpb"
)

var packages = map[protoreflect.FullName]bool{
	"authpb": true, "etcdserverpb": true, "leasepb": true, "membershippb": true, "mvccpb": true,
	"raftpb": true, "snappb": true, "v3electionpb": true, "v3lockpb": true, "walpb": true,
}

func main() {
	protoregistry.GlobalFiles.RangeFiles(func(file protoreflect.FileDescriptor) bool {
		if !packages[file.Package()] {
			return true
		}
		messages(file.Messages())
		enums(file.Enums())
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			for j := range service.Methods().Len() {
				m := service.Methods().Get(j)
				fmt.Printf("rpc %s %s %t %s %t\n", m.FullName(), m.Input().FullName(), m.IsStreamingClient(),
					m.Output().FullName(), m.IsStreamingServer())
			}
		}
		return true
	})
}

func messages(all protoreflect.MessageDescriptors) {
	for i := range all.Len() {
		message := all.Get(i)
		if message.IsMapEntry() {
			continue
		}
		fmt.Printf("message %s\n", message.FullName())
		for j := range message.Fields().Len() {
			f := message.Fields().Get(j)
			kind := f.Kind().String()
			if f.Message() != nil {
				kind = string(f.Message().FullName())
			}
			if f.Enum() != nil {
				kind = string(f.Enum().FullName())
			}
			fmt.Printf("field %s %d %s %s\n", f.FullName(), f.Number(), f.Cardinality(), kind)
		}
		messages(message.Messages())
		enums(message.Enums())
	}
}

func enums(all protoreflect.EnumDescriptors) {
	for i := range all.Len() {
		values := all.Get(i).Values()
		for j := range values.Len() {
			fmt.Printf("value %s %s %d\n", all.Get(i).FullName(), values.Get(j).Name(), values.Get(j).Number())
		}
	}
}
