// Requests to the server. A failed one throws an Error with the server's message.

export async function request(path, parameters = {}, options = {}) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    if (Array.isArray(value)) value.forEach((item) => query.append(name, item));
    else if (value !== null && value !== undefined) query.set(name, value);
  }
  const response = await fetch(query.size ? `${path}?${query}` : path, options);
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error || response.statusText);
  return answer;
}

export function send(path, content, method = "POST") {
  return request(path, {}, { method, headers: { "Content-Type": "application/json" }, body: JSON.stringify(content) });
}

// The picture of an image with the labels of several stores: pairs of a name and a threshold.
export function togetherUrl(key, stores, side) {
  const query = new URLSearchParams({ side });
  for (const [store, threshold] of stores) {
    query.append("store", store);
    query.append("t", `${store}:${threshold}`);
  }
  return `/api/together/${key}?${query}`;
}

export function pictureUrl(key, store, threshold, side) {
  const query = new URLSearchParams({ side });
  if (store) {
    query.set("store", store);
    query.set("threshold", threshold);
  }
  return `/api/picture/${key}?${query}`;
}
