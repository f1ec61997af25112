package sendbirdtest

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// template is one that was added.
type template struct {
	key       string
	variables []string
	raw       jsontext.Value
}

// AddTemplate adds a template, or replaces the one of that key, given as the JSON of its resource:
//
//	{"key":"sale","name":"Sale","variable_schema":[{"key":"name","type":"string","name":"Name"}]}
//
// From the first on, notifications need a template that exists, and every
// variable of it.
func (s *Server) AddTemplate(resource string) error {
	var t struct {
		Key            string `json:"key"`
		VariableSchema []struct {
			Key string `json:"key"`
		} `json:"variable_schema"`
	}
	if err := json.Unmarshal([]byte(resource), &t); err != nil {
		return fmt.Errorf("fake Sendbird: template: %w", err)
	}
	if t.Key == "" {
		return errors.New("fake Sendbird: template without a key")
	}
	one := template{key: t.Key, raw: jsontext.Value(resource)}
	for _, v := range t.VariableSchema {
		one.variables = append(one.variables, v.Key)
	}
	s.set(func() {
		s.templates = slices.DeleteFunc(s.templates, func(t template) bool { return t.key == one.key })
		s.templates = append(s.templates, one)
	})
	return nil
}

// listTemplates answers with one template or all of them. What stands around the
// list is a guess.
func (s *Server) listTemplates(escaped string) (response, bool) {
	key, err := url.PathUnescape(escaped)
	if err != nil {
		return refusal(400111, `Invalid value: "key".`), false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	body := []byte(`{"templates":[`)
	for i, t := range s.templates {
		if key != "" && t.key == key {
			return jsonResponse(http.StatusOK, string(t.raw)), true
		}
		if i > 0 {
			body = append(body, ',')
		}
		body = append(body, t.raw...)
	}
	if key != "" {
		return refusal(400201, `"Template" not found.`), false
	}
	return jsonResponse(http.StatusOK, string(body)+`],"next":""}`), true
}
