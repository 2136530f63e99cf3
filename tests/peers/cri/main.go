// A container runtime asked as a kubelet asks it, over its socket.
//
//	cri SOCKET status
//	cri SOCKET run NAME [HOST-PORT:PORT...]      prints the sandbox's id and its addresses
//	cri SOCKET stop|remove|addresses ID
//
// Annotations of a sandbox (JSON) come in ANNOTATIONS.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 2 {
		return errors.New("usage: cri SOCKET status|run|stop|remove|addresses [NAME or ID]")
	}
	connection, err := grpc.NewClient("unix://"+args[0], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Second)
	defer cancel()
	runtime := cri.NewRuntimeServiceClient(connection)
	if args[1] == "status" {
		answer, err := runtime.Status(ctx, &cri.StatusRequest{})
		for _, one := range answer.GetStatus().GetConditions() {
			fmt.Println(one.Type, one.Status, one.Message)
		}
		return err
	}
	if len(args) < 3 {
		return errors.New("which sandbox?")
	}
	switch args[1] {
	case "run":
		return start(ctx, runtime, args[2], args[3:])
	case "stop":
		_, err = runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: args[2]})
	case "remove":
		_, err = runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: args[2]})
	case "addresses":
		return addresses(ctx, runtime, args[2])
	default:
		return fmt.Errorf("unknown word %q", args[1])
	}
	return err
}

func start(ctx context.Context, runtime cri.RuntimeServiceClient, name string, ports []string) error {
	config := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: name, Namespace: "default", Uid: "uid-" + name},
		Hostname:     name,
		LogDirectory: "/run/pods",
		Linux:        &cri.LinuxPodSandboxConfig{},
	}
	if text := os.Getenv("ANNOTATIONS"); text != "" {
		if err := json.Unmarshal([]byte(text), &config.Annotations); err != nil {
			return err
		}
	}
	for _, text := range ports {
		mapping := &cri.PortMapping{}
		if _, err := fmt.Sscanf(text, "%d:%d", &mapping.HostPort, &mapping.ContainerPort); err != nil {
			return fmt.Errorf("%s: %w", text, err)
		}
		config.PortMappings = append(config.PortMappings, mapping)
	}
	answer, err := runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config})
	if err != nil {
		return err
	}
	fmt.Println(answer.PodSandboxId)
	return addresses(ctx, runtime, answer.PodSandboxId)
}

func addresses(ctx context.Context, runtime cri.RuntimeServiceClient, id string) error {
	answer, err := runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: id})
	if err != nil {
		return err
	}
	fmt.Println(answer.GetStatus().GetNetwork().GetIp())
	for _, more := range answer.GetStatus().GetNetwork().GetAdditionalIps() {
		fmt.Println(more.Ip)
	}
	return nil
}
