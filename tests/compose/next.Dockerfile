# The next version of a role, as the upgrade test needs one: the same code, other features declared.
ARG ROLE
FROM liveshelf/${ROLE}:0.1.0
COPY default.yml /app/features/default.yml
