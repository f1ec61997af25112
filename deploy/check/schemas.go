//go:build ignore

// Command schemas makes the strict JSON schemas in deploy/helm/schemas that the chart's
// manifests are validated with, offline: of each kind the chart makes, out of Kubernetes'
// own OpenAPI and the CRDs of the Prometheus operator, as the Go module proxy has them.
// Strict means that a field nobody knows is an error. To follow a newer Kubernetes:
//
//	cd deploy/check && go run schemas.go
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v3"
)

const (
	kubernetes = "k8s.io/kubernetes@v1.36.3"
	operator   = "github.com/prometheus-operator/prometheus-operator@v0.85.0"
	into       = "../helm/schemas"
)

// kinds are those of Kubernetes itself, by the name of their definition.
var kinds = []string{
	"io.k8s.api.apps.v1.Deployment",
	"io.k8s.api.apps.v1.StatefulSet",
	"io.k8s.api.autoscaling.v2.HorizontalPodAutoscaler",
	"io.k8s.api.batch.v1.Job",
	"io.k8s.api.core.v1.ConfigMap",
	"io.k8s.api.core.v1.Service",
	"io.k8s.api.core.v1.ServiceAccount",
	"io.k8s.api.networking.v1.Ingress",
	"io.k8s.api.networking.v1.NetworkPolicy",
	"io.k8s.api.policy.v1.PodDisruptionBudget",
}

// crds are those of the Prometheus operator, by the plural of their name.
var crds = []string{"prometheusrules", "servicemonitors"}

type object = map[string]any

func main() {
	var swagger struct {
		Definitions map[string]object `json:"definitions"`
	}
	text, err := os.ReadFile(filepath.Join(download(kubernetes), "api/openapi-spec/swagger.json"))
	check(err)
	check(json.Unmarshal(text, &swagger))
	for _, name := range kinds {
		used := object{}
		root := strict(swagger.Definitions, name, used)
		parts := strings.Split(name, ".")
		kind, version := parts[len(parts)-1], parts[len(parts)-2]
		root["definitions"] = used
		write(kind, version, root)
	}
	dir := filepath.Join(download(operator), "example/prometheus-operator-crd")
	for _, plural := range crds {
		text, err := os.ReadFile(filepath.Join(dir, "monitoring.coreos.com_"+plural+".yaml"))
		check(err)
		var crd struct {
			Spec struct {
				Names    struct{ Kind string }
				Versions []struct {
					Name   string
					Schema struct {
						OpenAPIV3Schema object `yaml:"openAPIV3Schema"`
					}
				}
			}
		}
		check(yaml.Unmarshal(text, &crd))
		for _, v := range crd.Spec.Versions {
			root := close(v.Schema.OpenAPIV3Schema).(object)
			root["properties"].(object)["metadata"] = object{"type": "object"}
			write(crd.Spec.Names.Kind, v.Name, root)
		}
	}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

// download returns the directory of a module.
func download(module string) string {
	out, err := exec.Command("go", "mod", "download", "-json", module).Output()
	var info struct{ Dir, Error string }
	if jsonErr := json.Unmarshal(out, &info); jsonErr != nil || info.Error != "" {
		log.Fatal(module, ": ", err, " ", info.Error)
	}
	return info.Dir
}

// strict is a definition with all that it refers to put into used.
func strict(all map[string]object, name string, used object) object {
	schema := close(all[name]).(object)
	walk(schema, func(ref string) {
		if _, done := used[ref]; !done {
			used[ref] = nil // it may refer to itself
			used[ref] = strict(all, ref, used)
		}
	})
	return schema
}

// walk calls fn with the definitions that a schema refers to.
func walk(v any, fn func(string)) {
	switch v := v.(type) {
	case object:
		if ref, ok := v["$ref"].(string); ok {
			fn(strings.TrimPrefix(ref, "#/definitions/"))
		}
		for _, value := range v {
			walk(value, fn)
		}
	case []any:
		for _, value := range v {
			walk(value, fn)
		}
	}
}

// close drops what is no rule, and lets an object have no other fields than those named.
func close(v any) any {
	switch v := v.(type) {
	case []any:
		list := make([]any, len(v))
		for i := range v {
			list[i] = close(v[i])
		}
		return list
	case object:
		if v["x-kubernetes-int-or-string"] == true || v["format"] == "int-or-string" {
			return object{"type": []string{"string", "integer"}}
		}
		if description, _ := v["description"].(string); strings.HasPrefix(description, "Quantity is a fixed-point") {
			return object{"type": []string{"string", "number"}}
		}
		out := object{}
		for key, value := range v {
			if _, text := value.(string); key == "description" && text || strings.HasPrefix(key, "x-kubernetes-") || key == "format" || key == "default" {
				continue
			}
			if key == "properties" { // of which one may be called description, or default
				fields := object{}
				for name, schema := range value.(object) {
					fields[name] = close(schema)
				}
				out[key] = fields
				continue
			}
			out[key] = close(value)
		}
		if _, fields := out["properties"]; fields && out["additionalProperties"] == nil && v["x-kubernetes-preserve-unknown-fields"] != true {
			out["additionalProperties"] = false
		}
		return out
	}
	return v
}

func write(kind, version string, schema object) {
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	check(e.Encode(schema))
	file := filepath.Join(into, strings.ToLower(fmt.Sprintf("%s_%s.json", kind, version)))
	check(os.WriteFile(file, out.Bytes(), 0o644))
}
