BEGIN TRANSACTION;
CREATE TABLE classifier (
	id INTEGER NOT NULL, 
	state JSON NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "classifier" VALUES(1,'{"latest": 2, "stack": [1]}');
CREATE TABLE classifiers (
	number INTEGER NOT NULL, 
	digest VARCHAR(64) NOT NULL, 
	published_at VARCHAR(32) NOT NULL, 
	summary JSON NOT NULL, 
	PRIMARY KEY (number), 
	UNIQUE (digest)
);
INSERT INTO "classifiers" VALUES(1,'0000000000000000000000000000000000000000000000000000000000000001','2026-11-01T00:33:00.000+00:00','{"rows": 1, "share": 0.5}');
INSERT INTO "classifiers" VALUES(2,'0000000000000000000000000000000000000000000000000000000000000002','2026-11-01T00:35:00.000+00:00','{"rows": 2, "share": 0.5}');
CREATE TABLE corrections (
	text_digest VARCHAR(64) NOT NULL, 
	label VARCHAR(63) NOT NULL, 
	text TEXT NOT NULL, 
	source VARCHAR(200) NOT NULL, 
	time VARCHAR(32) NOT NULL, 
	serial INTEGER NOT NULL, 
	PRIMARY KEY (text_digest)
);
INSERT INTO "corrections" VALUES('a99cc4afe906489aeba68a50069e6489fd1eef2d716dd41d151deb647c159605','base','what is the time','correction:operator','2026-11-01T00:24:00.000+00:00',21);
INSERT INTO "corrections" VALUES('8b6c17527a27a39613e8e3fdeff2d6751a7578afae30fd896859c68f2c52de9a','booking','list all orders','correction:operator','2026-11-01T00:26:00.000+00:00',22);
CREATE TABLE events (
	serial INTEGER NOT NULL, 
	time VARCHAR(32) NOT NULL, 
	kind VARCHAR(32) NOT NULL, 
	route VARCHAR(63), 
	number INTEGER, 
	actor VARCHAR(200) NOT NULL, 
	why TEXT, 
	payload JSON NOT NULL, 
	PRIMARY KEY (serial)
);
INSERT INTO "events" VALUES(1,'2026-11-01T00:00:00.000+00:00','route_created','sql',NULL,'ann@host',NULL,'{"description": "Questions to a database: \"quoted\", ''single'', \u00fcn\u00efcode \u6f22\u5b57"}');
INSERT INTO "events" VALUES(2,'2026-11-01T00:01:00.000+00:00','route_created','regex',NULL,'ann@host',NULL,'{"description": ""}');
INSERT INTO "events" VALUES(3,'2026-11-01T00:02:00.000+00:00','route_created','booking',NULL,'ann@host',NULL,'{"description": ""}');
INSERT INTO "events" VALUES(4,'2026-11-01T00:04:00.000+00:00','published','sql',1,'ann@host',NULL,'{"digest": "4e8d4bb7b3a2246a51ba961d501341239a45d9beeec88a8d89b210ae05449a91"}');
INSERT INTO "events" VALUES(5,'2026-11-01T00:06:00.000+00:00','published','sql',2,'ann@host',NULL,'{"digest": "1609ed28f4929c6165c34a7a68839ca2a90c802bad32e5b473f31f1b67b4f72d"}');
INSERT INTO "events" VALUES(6,'2026-11-01T00:08:00.000+00:00','published','sql',3,'ann@host',NULL,'{"digest": "f48fbaaa62dd74116696e21fe1156beb2b92ce709f4a99cce94f2f591445eb41"}');
INSERT INTO "events" VALUES(7,'2026-11-01T00:10:00.000+00:00','published','regex',1,'ann@host',NULL,'{"digest": "0d7178e1aa1ac6de2e8f6b064dad908eff351fea8109b107048136d77371f1af"}');
INSERT INTO "events" VALUES(8,'2026-11-01T00:11:00.000+00:00','evidence_added','sql',2,'ann@host',NULL,'{"digest": "eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee"}');
INSERT INTO "events" VALUES(9,'2026-11-01T00:12:00.000+00:00','promoted','sql',1,'ann@host','first one','{"forced": true}');
INSERT INTO "events" VALUES(10,'2026-11-01T00:13:00.000+00:00','promoted','sql',2,'ann@host','better; it''s so','{"forced": true}');
INSERT INTO "events" VALUES(11,'2026-11-01T00:14:00.000+00:00','promoted','sql',3,'ann@host','w','{"forced": true}');
INSERT INTO "events" VALUES(12,'2026-11-01T00:15:00.000+00:00','rolled_back','sql',2,'ann@host','worse','{"from": 3}');
INSERT INTO "events" VALUES(13,'2026-11-01T00:16:00.000+00:00','retired','sql',1,'ann@host',NULL,'{}');
INSERT INTO "events" VALUES(14,'2026-11-01T00:17:00.000+00:00','promoted','regex',1,'ann@host','f','{"forced": true}');
INSERT INTO "events" VALUES(15,'2026-11-01T00:18:00.000+00:00','disabled','regex',NULL,'ann@host','nonsense
answers','{}');
INSERT INTO "events" VALUES(16,'2026-11-01T00:19:00.000+00:00','route_changed','sql',NULL,'ann@host',NULL,'{"policy": {"min_items": 7}}');
INSERT INTO "events" VALUES(17,'2026-11-01T00:20:00.000+00:00','examples_changed','sql',NULL,'ann@host',NULL,'{"added": 3, "examples_digest": "7aaad46d29169ea680c07a8fe4e5006fe4fbde63a3b522950c5fb0909a090e29"}');
INSERT INTO "events" VALUES(18,'2026-11-01T00:21:00.000+00:00','examples_changed','booking',NULL,'ann@host',NULL,'{"added": 1, "examples_digest": "e3adfcf2a8099e68efbcea56ee6b2312db12d50a2fe3b80b6917ff9b5da9b0ff"}');
INSERT INTO "events" VALUES(19,'2026-11-01T00:22:00.000+00:00','examples_changed','regex',NULL,'ann@host',NULL,'{"added": 1, "examples_digest": "d4c306995191dd976eeab5dd14e972ae6f94826ee0ec8c8acdf2c40b4ae44be8"}');
INSERT INTO "events" VALUES(20,'2026-11-01T00:23:00.000+00:00','route_forgotten','regex',NULL,'ann@host',NULL,'{"removed": 1, "corrections": 0, "feedback": 0, "examples_digest": null}');
INSERT INTO "events" VALUES(21,'2026-11-01T00:25:00.000+00:00','corrected',NULL,NULL,'ann@host','w','{"gained": ["a99cc4afe906489aeba68a50069e6489fd1eef2d716dd41d151deb647c159605"], "lost": []}');
INSERT INTO "events" VALUES(22,'2026-11-01T00:27:00.000+00:00','corrected','booking',NULL,'ann@host',NULL,'{"gained": ["8b6c17527a27a39613e8e3fdeff2d6751a7578afae30fd896859c68f2c52de9a"], "lost": []}');
INSERT INTO "events" VALUES(23,'2026-11-01T00:28:00.000+00:00','corrected','sql',NULL,'ann@host',NULL,'{"gained": [], "lost": ["8b6c17527a27a39613e8e3fdeff2d6751a7578afae30fd896859c68f2c52de9a"]}');
INSERT INTO "events" VALUES(24,'2026-11-01T00:32:00.000+00:00','feedback_rejected','sql',NULL,'ann@host',NULL,'{"rejected": ["2d3d280663b36c79e47c718d291973432f24c0d98ee2df6ab2fc9e398fc85b92"]}');
INSERT INTO "events" VALUES(25,'2026-11-01T00:33:00.000+00:00','classifier_published',NULL,1,'ann@host',NULL,'{"digest": "0000000000000000000000000000000000000000000000000000000000000001"}');
INSERT INTO "events" VALUES(26,'2026-11-01T00:34:00.000+00:00','classifier_promoted',NULL,1,'ann@host',NULL,'{}');
INSERT INTO "events" VALUES(27,'2026-11-01T00:35:00.000+00:00','classifier_published',NULL,2,'ann@host',NULL,'{"digest": "0000000000000000000000000000000000000000000000000000000000000002"}');
INSERT INTO "events" VALUES(28,'2026-11-01T00:36:00.000+00:00','classifier_promoted',NULL,2,'ann@host',NULL,'{}');
INSERT INTO "events" VALUES(29,'2026-11-01T00:37:00.000+00:00','classifier_rolled_back',NULL,1,'ann@host',NULL,'{"from": 2}');
CREATE TABLE evidence (
	serial INTEGER NOT NULL, 
	route VARCHAR(63) NOT NULL, 
	number INTEGER NOT NULL, 
	digest VARCHAR(64) NOT NULL, 
	PRIMARY KEY (serial), 
	FOREIGN KEY(serial) REFERENCES events (serial)
);
INSERT INTO "evidence" VALUES(8,'sql',2,'eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee');
CREATE TABLE examples (
	route VARCHAR(63) NOT NULL, 
	text_digest VARCHAR(64) NOT NULL, 
	position INTEGER NOT NULL, 
	text TEXT NOT NULL, 
	source VARCHAR(200) NOT NULL, 
	PRIMARY KEY (route, text_digest), 
	FOREIGN KEY(route) REFERENCES routes (name)
);
INSERT INTO "examples" VALUES('sql','55857bcf80e5c7c15bfca1ee22b14145524a39f243eb7f9eba7b0c93d04c9211',1,'count the users','operator');
INSERT INTO "examples" VALUES('sql','8b6c17527a27a39613e8e3fdeff2d6751a7578afae30fd896859c68f2c52de9a',2,'list all orders','operator');
INSERT INTO "examples" VALUES('sql','2a7249db9f62adf11939e585ee354224e6d8660a56c3bfc585819c7d65425325',3,'größter Umsatz','operator');
INSERT INTO "examples" VALUES('booking','7639f8d7abf81885df1dc809f219006365f58c47fb696e58ee9afd86233101cb',1,'a table for two','file x.jsonl');
CREATE TABLE feedback (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	label VARCHAR(63) NOT NULL, 
	text_digest VARCHAR(64) NOT NULL, 
	text TEXT NOT NULL, 
	source VARCHAR(200) NOT NULL, 
	time VARCHAR(32) NOT NULL, 
	times INTEGER NOT NULL, 
	UNIQUE (label, text_digest)
);
INSERT INTO "feedback" VALUES(1,'sql','593757134f0028f95a9be7a100fc021facd91d625b5d47a631e65610fdce69d5','a','key:1','2026-11-01T00:29:00.000+00:00',1);
INSERT INTO "feedback" VALUES(2,'sql','c3559473c022146bb489fc072de75eea85f6b3dc5a4b9f8443b62ca1c243aebb','b','key:1','2026-11-01T00:30:00.000+00:00',1);
CREATE TABLE gateways (
	gateway_id VARCHAR(64) NOT NULL, 
	last_seen FLOAT NOT NULL, 
	serial INTEGER NOT NULL, 
	document JSON NOT NULL, 
	PRIMARY KEY (gateway_id)
);
INSERT INTO "gateways" VALUES('g-1',1.5,3,'{"routes": {"sql": {"serial": 3, "engine_name": "sql@2.x", "problem": null}}, "classifier_digest": null, "base_id": null, "base_fingerprint": null, "exemplars_digest": null}');
CREATE TABLE registry (
	id INTEGER NOT NULL, 
	schema INTEGER NOT NULL, 
	serial INTEGER NOT NULL, 
	PRIMARY KEY (id)
);
INSERT INTO "registry" VALUES(1,1,29);
CREATE TABLE routes (
	name VARCHAR(63) NOT NULL, 
	revision INTEGER NOT NULL, 
	state JSON NOT NULL, 
	PRIMARY KEY (name)
);
INSERT INTO "routes" VALUES('sql',7,'{"name": "sql", "revision": 7, "description": "Questions to a database: \"quoted\", ''single'', \u00fcn\u00efcode \u6f22\u5b57", "policy": {"min_items": 7}, "enabled": true, "latest": 3, "stack": [1, 2], "ever_live": [1, 2, 3], "retired": [1], "examples_digest": "7aaad46d29169ea680c07a8fe4e5006fe4fbde63a3b522950c5fb0909a090e29"}');
INSERT INTO "routes" VALUES('regex',3,'{"name": "regex", "revision": 3, "description": "", "policy": {}, "enabled": false, "latest": 1, "stack": [1], "ever_live": [1], "retired": [], "examples_digest": null}');
INSERT INTO "routes" VALUES('booking',1,'{"name": "booking", "revision": 1, "description": "", "policy": {}, "enabled": true, "latest": 0, "stack": [], "ever_live": [], "retired": [], "examples_digest": "e3adfcf2a8099e68efbcea56ee6b2312db12d50a2fe3b80b6917ff9b5da9b0ff"}');
CREATE TABLE versions (
	route VARCHAR(63) NOT NULL, 
	number INTEGER NOT NULL, 
	digest VARCHAR(64) NOT NULL, 
	published_at VARCHAR(32) NOT NULL, 
	manifest JSON NOT NULL, 
	PRIMARY KEY (route, number), 
	UNIQUE (route, digest), 
	FOREIGN KEY(route) REFERENCES routes (name)
);
INSERT INTO "versions" VALUES('sql',1,'4e8d4bb7b3a2246a51ba961d501341239a45d9beeec88a8d89b210ae05449a91','2026-11-01T00:03:00.000+00:00','{"digest": "4e8d4bb7b3a2246a51ba961d501341239a45d9beeec88a8d89b210ae05449a91", "files": {"adapter_config.json": "0000000000000000000000000000000000000000000000000000000000000001", "adapter_model.safetensors": "0000000000000000000000000000000000000000000000000000000000000000"}, "size_bytes": 10, "base_id": "pocket", "base_fingerprint": "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb", "rank": 4, "alpha": 8.0, "targets": ["q_proj"], "training": {}, "data_digests": {}, "parents": [], "notes": []}');
INSERT INTO "versions" VALUES('sql',2,'1609ed28f4929c6165c34a7a68839ca2a90c802bad32e5b473f31f1b67b4f72d','2026-11-01T00:05:00.000+00:00','{"digest": "1609ed28f4929c6165c34a7a68839ca2a90c802bad32e5b473f31f1b67b4f72d", "files": {"adapter_config.json": "0000000000000000000000000000000000000000000000000000000000000002", "adapter_model.safetensors": "0000000000000000000000000000000000000000000000000000000000000000"}, "size_bytes": 10, "base_id": "pocket", "base_fingerprint": "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb", "rank": 4, "alpha": 8.0, "targets": ["q_proj"], "training": {}, "data_digests": {}, "parents": [], "notes": []}');
INSERT INTO "versions" VALUES('sql',3,'f48fbaaa62dd74116696e21fe1156beb2b92ce709f4a99cce94f2f591445eb41','2026-11-01T00:07:00.000+00:00','{"digest": "f48fbaaa62dd74116696e21fe1156beb2b92ce709f4a99cce94f2f591445eb41", "files": {"adapter_config.json": "0000000000000000000000000000000000000000000000000000000000000003", "adapter_model.safetensors": "0000000000000000000000000000000000000000000000000000000000000000"}, "size_bytes": 10, "base_id": "pocket", "base_fingerprint": "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb", "rank": 4, "alpha": 8.0, "targets": ["q_proj"], "training": {}, "data_digests": {}, "parents": [], "notes": []}');
INSERT INTO "versions" VALUES('regex',1,'0d7178e1aa1ac6de2e8f6b064dad908eff351fea8109b107048136d77371f1af','2026-11-01T00:09:00.000+00:00','{"digest": "0d7178e1aa1ac6de2e8f6b064dad908eff351fea8109b107048136d77371f1af", "files": {"adapter_config.json": "0000000000000000000000000000000000000000000000000000000000000009", "adapter_model.safetensors": "0000000000000000000000000000000000000000000000000000000000000000"}, "size_bytes": 10, "base_id": "pocket", "base_fingerprint": "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb", "rank": 4, "alpha": 8.0, "targets": ["q_proj"], "training": {}, "data_digests": {}, "parents": [], "notes": []}');
CREATE INDEX ix_events_route ON events (route);
CREATE INDEX ix_corrections_label ON corrections (label);
CREATE INDEX ix_feedback_source ON feedback (source);
CREATE INDEX ix_evidence_route ON evidence (route);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('feedback',3);
COMMIT;
