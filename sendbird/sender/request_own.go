package sender

import (
	"github.com/go-json-experiment/json/jsontext"

	"github.com/birdtap/birdtap/sendbird"
)

// ownCall is birdtap's own call. It has the members of Sendbird's "send a notification"
// (https://sendbird.com/docs/business-messaging/guide/v2/send-a-notification) and takes
// a body that was written for that as it stands; event_name and target_id are what the
// receipts are told by, and is_test tries the door.
//
//	{"template":{"key":"welcome","variables":{"sb-1":{"name":"Jay"}},"notification_push_data":{"k":"v"}},
//	 "targets":["sb-1"],"mode":"realtime","priority":"high","tag":"…","title":"…",
//	 "event_name":"Welcome","target_id":1234}
//
// Its names are strict. mode may be left out, since the door says it. Of targets there
// may be more than Sendbird takes in one call: birdtap makes as many calls as it needs.
type ownCall struct {
	message   Message
	mode      string
	targets   jsontext.Value
	variables map[string]jsontext.Value // by user id
}

func parseOwn(asks *grouping, body jsontext.Value) error {
	call := ownCall{message: Message{Mode: asks.mode}}
	if err := members(body, call.set); err != nil {
		return err
	}
	if call.mode != "" && call.mode != string(asks.mode) {
		return mistakef("mode must be %s at this door, or left out", asks.mode)
	}
	if wrong := checkMessage(&call.message, func(field string) string { return field }); wrong != nil {
		return wrong
	}
	group, err := asks.group(call.message)
	if err != nil {
		return err
	}
	return call.users(asks, group)
}

func (c *ownCall) set(name string, v jsontext.Value) (err error) {
	switch name {
	case "template":
		return inObject(name, v, c.setTemplate)
	case "targets":
		c.targets = v
	case "mode":
		c.mode, err = ownText(name, v)
		if err == nil && c.mode == "" {
			err = mistakef("mode: must be realtime or batch")
		}
	case "priority":
		var priority string
		priority, err = ownText(name, v)
		c.message.Priority = sendbird.Priority(priority)
	case "tag":
		c.message.Tag, err = ownText(name, v)
	case "title":
		c.message.Title, err = ownText(name, v)
	case "event_name":
		c.message.Event, err = ownText(name, v)
	case "target_id":
		c.message.Target, err = targetID(name, v)
	case "is_test": // seen to
	case "targets_filename":
		return mistakef("targets_filename is not supported here: name the users in targets, or send a file with `birdtap send --csv`")
	default:
		return mistakef("unknown member %s beside template and targets", inQuotes(name))
	}
	return err
}

func (c *ownCall) setTemplate(name string, v jsontext.Value) (err error) {
	switch name {
	case "key":
		c.message.Template, err = ownText("template.key", v)
		return err
	case "variables":
		c.variables = map[string]jsontext.Value{}
		return inObject("template.variables", v, func(user string, v jsontext.Value) error {
			c.variables[user] = v
			if len(c.variables) > maxCallUsers {
				return errTooManyUsers
			}
			return nil
		})
	case "notification_push_data":
		c.message.Push = map[string]string{}
		return inObject("template.notification_push_data", v, func(key string, v jsontext.Value) (err error) {
			c.message.Push[key], err = ownText("template.notification_push_data."+inQuotes(key), v)
			return err
		})
	default:
		return mistakef("unknown member %s in template", inQuotes(name))
	}
}

func inObject(name string, v jsontext.Value, fn func(name string, v jsontext.Value) error) error {
	if v.Kind() != jsontext.KindBeginObject {
		return mistakef("%s must be an object", name)
	}
	return members(v, fn)
}

func ownText(name string, v jsontext.Value) (string, error) {
	if v.Kind() != jsontext.KindString {
		return "", mistakef("%s must be a string", name)
	}
	return unquote(v), nil
}

// users makes users of the targets.
func (c *ownCall) users(asks *grouping, group *group) error {
	if c.targets.Kind() != jsontext.KindBeginArray {
		return mistakef("targets must be an array of user ids")
	}
	seen := map[string]bool{}
	err := elements(c.targets, func(i int, v jsontext.Value) error {
		if v.Kind() != jsontext.KindString {
			return mistakef("targets[%d] must be a string", i)
		}
		id := unquote(v)
		if seen[id] {
			return nil // with the same variables
		}
		seen[id] = true
		variables, ok := c.variables[id]
		if problem := checkUser(id); problem != "" {
			return asks.unsendable(group, Unsendable{shownUser(id), ReasonInvalid, "user id: " + problem})
		}
		if !ok && len(c.variables) > 0 {
			return asks.unsendable(group, Unsendable{id, ReasonVariables, "no entry in template.variables, where others have one"})
		}
		vars, problem := ownVariables(variables)
		if problem != "" {
			return asks.unsendable(group, Unsendable{id, ReasonVariables, problem})
		}
		return asks.add(group, User{id, vars}, variablesSize(vars))
	})
	switch {
	case err != nil:
		return err
	case len(seen) == 0:
		return mistakef("targets: at least one user id is wanted")
	}
	for user := range c.variables {
		if !seen[user] {
			return mistakef("template.variables has entries for users who are not in targets")
		}
	}
	return nil
}

// ownVariables reads one user's variables, or says why it cannot. They are as strict as
// Sendbird's: text, an image or an action.
func ownVariables(object jsontext.Value) (sendbird.Variables, string) {
	switch object.Kind() {
	case jsontext.KindBeginObject:
	case jsontext.KindInvalid: // nobody has any
		return nil, ""
	default:
		return nil, "the entry in template.variables is no object"
	}
	vars, problem := sendbird.Variables{}, ""
	_ = members(object, func(name string, v jsontext.Value) error { // valid, as all of the body
		value, err := sendbird.ParseValue(v)
		why := ""
		if err != nil {
			why = noValue
		} else {
			why = checkVariable(name, value)
		}
		if why != "" && problem == "" {
			problem = variableProblem(name, why)
		}
		vars[name] = value
		return nil
	})
	if problem == "" {
		problem = tooLargeProblem(variablesSize(vars))
	}
	return vars, problem
}
