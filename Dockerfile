# docker build -t colocate .
# docker run --rm --gpus all --shm-size 8g -v "$PWD:/work" colocate pretrain plm --data tiles --out run
FROM python:3.11-slim
COPY . /src
# The tested pins; without what only developers need.
RUN pip install --no-cache-dir uv \
 && uv pip install --system --no-cache --constraints /src/requirements.lock "/src[all]" \
 && rm -rf /src
RUN useradd --create-home colocate
USER colocate
WORKDIR /work
ENTRYPOINT ["colocate"]
